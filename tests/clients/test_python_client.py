"""The Python client: pictures of a real server, retries against a server of prepared answers."""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from img2img_client import (
    Account,
    AsyncClient,
    Client,
    Credits,
    ImageToImageError,
    Progress,
    Result,
)
from img2img_client.forms import file_of
from server.cli.main import app
from tests.clients.conftest import KEY, SIDE, pixels
from tests.clients.fake_server import (
    Answer,
    dropping,
    failing,
    fake_server,
    picture_event,
    picturing,
    streaming,
)
from tests.server.pictures import file_of as png_of
from tests.server.pictures import gradient
from tests.server.server_process import ROOT, ServerProcess

QUICK: dict[str, Any] = {"steps": 10, "image_strength": 0.9, "seed": 7}
Generate = Callable[..., Result]


@pytest.fixture(params=["sync", "async"])
def generate(request: pytest.FixtureRequest) -> Generate:
    """A new client's `image_to_image`: `generate(url, image, prompt, client=options, **fields)`."""

    def of_client(
        url: str, *args: Any, client: dict[str, Any] | None = None, **fields: Any
    ) -> Result:
        with Client(url, KEY, **client or {}) as sync:
            return sync.image_to_image(*args, **fields)

    async def of_async(url: str, args: Any, client: dict[str, Any] | None, fields: Any) -> Result:
        async with AsyncClient(url, KEY, **client or {}) as asynchronous:
            return await asynchronous.image_to_image(*args, **fields)

    def of_loop(
        url: str, *args: Any, client: dict[str, Any] | None = None, **fields: Any
    ) -> Result:
        return asyncio.run(of_async(url, args, client, fields))

    return of_client if request.param == "sync" else of_loop


def test_a_picture_with_its_progress(
    server: ServerProcess, image: bytes, generate: Generate
) -> None:
    heard: list[Progress] = []
    result = generate(
        server.url,
        image,
        "a blue circle",
        progress=heard.append,
        previews=True,
        steps=10,
        image_strength=0.5,
        seed=3,
    )
    assert result.image.size == (SIDE, SIDE)
    assert result.seed == 3
    assert not result.filtered
    assert not result.replayed
    assert result.credits is None
    assert result.model == "embedded"
    assert np.array_equal(pixels(result.file), np.array(result.image))
    assert Image.open(io.BytesIO(result.file)).text["parameters"].startswith("a blue circle\n")  # type: ignore[attr-defined]
    assert heard[-1].step == heard[-1].steps == 10
    assert heard[-1].evaluation == heard[-1].evaluations == 5
    (*_, preview) = (at.preview for at in heard if at.preview is not None)
    assert preview.size == (SIDE // 8, SIDE // 8)


def test_sources_of_a_picture_are_alike(
    server: ServerProcess, image: bytes, tmp_path: Path
) -> None:
    (tmp_path / "in.png").write_bytes(image)
    sources = [image, str(tmp_path / "in.png"), tmp_path / "in.png", Image.open(io.BytesIO(image))]
    with Client(server.url, KEY) as client:
        made = [client.image_to_image(source, "a cat", **QUICK).file for source in sources]
    assert made == [made[0]] * 4


def test_images_of_any_mode_go_upright() -> None:
    for mode in ("1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "I", "RGBa", "RGBX"):
        sent = Image.open(io.BytesIO(file_of(Image.new(mode, (3, 2)))))
        assert sent.size == (3, 2)
    lying = Image.new("RGB", (3, 2))
    lying.getexif()[274] = 6
    assert Image.open(io.BytesIO(file_of(lying))).size == (2, 3)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
def test_a_deep_image_keeps_its_greys(mode: str) -> None:
    greys = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    if mode == "I":
        deep = Image.fromarray(greys.astype(np.int32))
    else:
        bytes_ = greys.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
        deep = Image.frombytes(mode, (4, 3), bytes_)
    sent = Image.open(io.BytesIO(file_of(deep)))
    assert sent.mode == "I;16"
    assert np.array_equal(np.array(sent), greys)


def test_an_image_of_no_known_white_is_refused(generate: Generate) -> None:
    beyond = Image.new("I", (3, 2), 65536)
    with fake_server(picturing(1)) as server:
        for image, why in ((Image.new("F", (3, 2), 0.5), "mode F"), (beyond, "to 65536")):
            with pytest.raises(ValueError, match=why):
                generate(server.url, image, "a cat")
    assert not server.asked


def test_a_mask_keeps_what_is_black(server: ServerProcess, image: bytes) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    with Client(server.url, KEY) as client:
        result = client.image_to_image(image, "a red circle", mask=mask, steps=10, seed=3)
    before, after = pixels(image), np.array(result.image)
    assert np.array_equal(before[:, : SIDE // 2], after[:, : SIDE // 2])
    assert not np.array_equal(before[:, SIDE // 2 :], after[:, SIDE // 2 :])


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_another_format_comes_by_the_stream_too(
    server: ServerProcess, image: bytes, generate: Generate, kind: str
) -> None:
    heard: list[Progress] = []
    result = generate(server.url, image, "a cat", format=kind, progress=heard.append, **QUICK)
    assert Image.open(io.BytesIO(result.file)).format == kind.upper()
    assert heard


def test_unknown_fields_are_named(server: ServerProcess, image: bytes) -> None:
    with Client(server.url, KEY) as client:
        result = client.image_to_image(image, "a cat", strength=0.5, tiling=True, **QUICK)
    assert set(result.ignored_fields) == {"strength", "tiling"}


def test_every_bad_field_is_told(server: ServerProcess, image: bytes, generate: Generate) -> None:
    with pytest.raises(ImageToImageError) as told:
        generate(server.url, image, "a cat", steps=5, cfg_scale=99, sampler="X")
    assert told.value.status == 400
    assert told.value.fields["steps"] == "5 is not in 10..50"
    assert set(told.value.fields) == {"steps", "cfg_scale", "sampler"}
    assert told.value.request_id


def test_the_key_is_an_argument_or_the_environments(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMG2IMG_API_KEY", raising=False)
    with Client(server.url) as client, pytest.raises(ImageToImageError) as told:
        client.account()
    assert told.value.status == 401
    monkeypatch.setenv("IMG2IMG_API_KEY", KEY)
    with Client(server.url + "/") as client:
        assert client.account() == Account(client.account().name, None, None, None, None)


def test_a_task_that_is_cancelled_withdraws_its_request(
    server: ServerProcess, image: bytes
) -> None:
    async def leave() -> None:
        begun = asyncio.Event()
        async with AsyncClient(server.url, KEY) as client:
            task = asyncio.create_task(
                client.image_to_image(
                    image, "a cat", image_strength=0, steps=50, width=1024, height=1024,
                    progress=lambda _: begun.set(),
                )
            )  # fmt: skip
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(leave())
    assert "status=499" in server.log_line("status=499")


def test_credits_are_told_and_charged_once(server: ServerProcess, image: bytes) -> None:
    database = f"sqlite:///{server.log_file.parent}/keys.db"
    created = CliRunner().invoke(
        app, ["keys", "create", "a", "--credits", "2"], env={"IMG2IMG_DATABASE_URL": database}
    )
    with Client(server.url, created.stdout.strip()) as client:
        first, again = (
            client.image_to_image(image, "a cat", idempotency_key="one", **QUICK) for _ in range(2)
        )
        account = client.account()
    assert first.credits == Credits(Decimal("0.4"), Decimal("1.6"))
    assert again.file == first.file
    assert again.replayed
    assert again.credits == Credits(Decimal("0.0"), Decimal("1.6"))
    assert (account.name, account.balance, account.reserved) == ("a", Decimal("1.6"), Decimal(0))


@pytest.mark.parametrize(
    "refused",
    [
        failing(503, "the server is busy", Retry_After="0"),
        failing(429, "too often", Retry_After="0"),
        failing(429, "too often", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        failing(429, "too often", Retry_After="Sat, 99 Nov 99999 20:00:00 GMT"),
        failing(429, "too often", Retry_After=f"Sat, 28 Nov {10**20} 20:00:00 GMT"),
        failing(409, "still running", Retry_After="0"),
        failing(200, "the server is busy", X_Status="503", Retry_After="0"),
        failing(502, "a proxy's"),
        dropping,
        streaming(("progress", {"step": 1, "steps": 2})),
        streaming(("result", {"code": -1, "message": "shutting down", "status": 503})),
    ],
)
def test_what_is_busy_or_lost_is_asked_again_under_one_key(
    refused: Answer, image: bytes, generate: Generate
) -> None:
    waits: list[tuple[int, float]] = []

    def hear(error: ImageToImageError, wait: float) -> None:
        waits.append((error.status, wait))

    with fake_server(refused, streaming(picture_event(3))) as server:
        assert generate(server.url, image, "a cat", on_retry=hear).seed == 3
    assert len(waits) == 1
    assert waits[0][1] <= 1
    first, second = server.asked
    assert re.fullmatch("[0-9a-f]{32}", first.headers["Idempotency-Key"])
    assert len(set(server.keys)) == 1
    assert image in first.body
    assert image in second.body
    assert first.path == "/api/generate/basic/imageToImage"


def test_every_call_has_a_key_of_its_own(image: bytes) -> None:
    with fake_server(picturing(1), picturing(2)) as server, Client(server.url) as client:
        assert [client.image_to_image(image, "a").seed for _ in range(2)] == [1, 2]
    assert len(set(server.keys)) == 2


def test_tries_are_bounded(image: bytes, generate: Generate) -> None:
    busy = [failing(503, "the server is busy", Retry_After="0")] * 9
    with fake_server(*busy) as server, pytest.raises(ImageToImageError) as told:
        generate(server.url, image, "a cat", client={"retries": 2})
    assert (told.value.status, told.value.retry_after, len(server.asked)) == (503, 0, 3)


def test_a_model_that_loads_is_waited_for(image: bytes, generate: Generate) -> None:
    """It takes as long as it takes: what bounds that is time, not the number of tries."""
    loading = [failing(503, "the model is loading", Retry_After="0.01")] * 3
    with fake_server(*loading, dropping, picturing(3)) as server:
        assert generate(server.url, image, "a cat", client={"retries": 1}).seed == 3
    assert len(server.asked) == 5
    loading = [failing(503, "the model is loading", Retry_After="0.6")] * 9
    with fake_server(*loading) as server, pytest.raises(ImageToImageError, match="is loading"):
        generate(server.url, image, "a cat", client={"patience": 1})
    assert len(server.asked) == 2
    with fake_server(*loading) as server, pytest.raises(ImageToImageError, match="is loading"):
        generate(server.url, image, "a cat", client={"retries": 0})
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [pytest.param(409, marks=pytest.mark.slow("protocols")), 429])
def test_a_place_or_the_first_try_is_waited_for_as_long(
    status: int, image: bytes, generate: Generate
) -> None:
    """The pictures of the same key end, however long they take."""
    taken = [failing(status, "not yet", Retry_After="0.01")] * 2
    with fake_server(*taken, picturing(3)) as server:
        assert generate(server.url, image, "a cat", client={"retries": 1}).seed == 3
    assert len(set(server.keys)) == 1
    with fake_server(*taken) as server, pytest.raises(ImageToImageError, match="not yet"):
        generate(server.url, image, "a cat", client={"patience": 0.5})
    assert len(server.asked) == 2
    # What was lost meanwhile may have run for long: the wait for it begins anew.
    waiting = failing(status, "not yet", Retry_After="0.6")
    with fake_server(waiting, dropping, waiting, picturing(3)) as server:
        assert generate(server.url, image, "a cat", client={"patience": 1}).seed == 3
    # So may have what began and was refused in the end; it counts as a try, as what was lost does.
    away = {"code": -1, "message": "away", "data": None, "status": 503, "retry_after": 0.6}
    ran = streaming(("progress", {"step": 1, "steps": 2}), ("result", away))
    with fake_server(waiting, ran, waiting, picturing(3)) as server:
        assert generate(server.url, image, "a cat", client={"patience": 1}).seed == 3
    with fake_server(ran, ran, picturing(3)) as server, pytest.raises(ImageToImageError) as told:
        generate(server.url, image, "a cat", client={"retries": 1})
    assert (told.value.message, len(server.asked)) == ("away", 2)


def test_a_stream_that_ends_so_is_waited_for_too(image: bytes, generate: Generate) -> None:
    """Its headers were sent before anybody knew."""
    away = {"code": -1, "message": "away", "data": None, "status": 503, "retry_after": 0.01}
    with fake_server(*[streaming(("result", away))] * 2, picturing(3)) as server:
        assert generate(server.url, image, "a cat", client={"retries": 1}).seed == 3
    assert len(set(server.keys)) == 1
    later = streaming(("result", away | {"retry_after": 121}))
    with fake_server(later) as server, pytest.raises(ImageToImageError) as told:
        generate(server.url, image, "a cat")
    assert (len(server.asked), told.value.retry_after) == (1, 121)


@pytest.mark.parametrize(
    "refused",
    [
        failing(400, "prompt: is required"),
        failing(402, "not enough credits"),
        failing(409, "Idempotency-Key: was used for another request"),
        failing(500, "internal error"),
        failing(503, "the server is busy", Retry_After="121"),
        streaming(("result", {"code": -1, "message": "over 300 s", "status": 504})),
    ],
)
def test_what_would_not_help_is_not_asked_again(
    refused: Answer, image: bytes, generate: Generate
) -> None:
    with fake_server(refused, picturing(1)) as server, pytest.raises(ImageToImageError) as told:
        generate(server.url, image, "a cat")
    assert len(server.asked) == 1
    assert told.value.status in (400, 402, 409, 500, 503, 504)


def test_where_nothing_listens_the_address_is_named(image: bytes) -> None:
    with fake_server() as server:
        pass
    with Client(server.url, retries=0) as client, pytest.raises(ImageToImageError) as told:
        client.image_to_image(image, "a")
    assert told.value.status == 0
    assert server.url in told.value.message
    with pytest.raises(ValueError, match="url: 'localhost' does not start with http"):
        Client("localhost")


@pytest.mark.parametrize(
    "url",
    [
        "http://name:secret@{}",
        "http://name:secret@{}/?a",
        "http://name:secret@{}:99999",
        "http://name:secret/part@{}",
        "http://name:secret?@{}",
        "http://secret@{}/#",
        "ftp://name:secret@{}",
        "name:secret@{}",
    ],
)
def test_a_password_in_an_address_is_not_shown(url: str, image: bytes) -> None:
    with fake_server() as server:
        pass
    host = server.url.removeprefix("http://")
    with (
        pytest.raises((ValueError, ImageToImageError)) as told,
        Client(url.format(host), retries=0) as client,
    ):
        client.image_to_image(image, "a")
    assert host in str(told.value)
    assert "secret" not in str(told.value)
    assert "name:" not in str(told.value)


def test_what_is_no_answer_of_this_server_is_said(image: bytes) -> None:
    def page(handler: Any) -> None:
        handler.send_response(404)
        handler.send_header("Content-Length", "6")
        handler.end_headers()
        handler.wfile.write(b"<html>")

    with (
        fake_server(page) as server,
        Client(server.url) as client,
        pytest.raises(ImageToImageError, match="none of an img2img-server's: HTTP 404"),
    ):
        client.image_to_image(image, "a")


@pytest.mark.parametrize(
    "answer",
    [
        streaming(("result", {"code": 0})),
        streaming(("result", {"code": 0, "data": {"image": "!!", "seed": 1}})),
        streaming(("result", {"code": 0, "data": picture_event(1)[1]["data"] | {"seed": "x"}})),
        streaming(("result", {"code": -1, "message": "busy", "status": "abc"})),
        streaming(("result", [0])),
        streaming(("progress", {"step": 1}), picture_event(1)),
        streaming(("progress", {"step": 1, "steps": 2, "preview": "!!"}), picture_event(1)),
        picturing(1, X_Credits_Charged="much"),
    ],
)
def test_an_answer_with_anything_wrong_in_it_is_an_image_to_image_error(
    answer: Answer, image: bytes, generate: Generate
) -> None:
    with (
        fake_server(answer, picturing(1)) as server,
        pytest.raises(ImageToImageError, match="none of an img2img-server's: HTTP 200"),
    ):
        generate(server.url, image, "a cat", progress=lambda _: None)
    assert len(server.asked) == 1


def test_threads_may_share_a_client(server: ServerProcess) -> None:
    seeds: list[int] = []
    picture = png_of(gradient(SIDE, SIDE))
    with Client(server.url, KEY) as client:

        def ask(seed: int) -> None:
            seeds.append(client.image_to_image(picture, "a", **QUICK | {"seed": seed}).seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(seeds) == [1, 2, 3]


def test_it_imports_no_torch_and_nothing_of_the_server() -> None:
    check = (
        "import sys, img2img_client;"
        "print([name for name in ('torch', 'numpy', 'server', 'pipelines') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT / "clients" / "python",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
