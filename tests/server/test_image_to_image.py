from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from pipelines.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineDead,
    EngineDraining,
    GenerationCancelled,
    GenerationFailed,
)
from pipelines.request import Sampler
from server import __version__
from server.errors import DecodersBusy
from server.images.workers.pool import DecoderPool
from server.img2img.deny_list import DenyList
from server.img2img.form import parse_form
from tests.server.conftest import PATH, MakeClient, Send
from tests.server.failures import assert_failure
from tests.server.pictures import corner_colours, file_of, four_corners
from tests.server.raw_asgi import Message, call
from tests.server.stub_engine import StubEngine


def picture_in(response: Any) -> Image.Image:
    data = base64.b64decode(response.json()["data"]["image"], validate=True)
    return Image.open(io.BytesIO(data))


def test_success_has_exactly_the_contracts_keys(send: Send) -> None:
    response = send(seed="7", width="320", height="320")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert list(body) == ["code", "message", "data"]
    assert (body["code"], body["message"]) == (0, "success")
    assert list(body["data"]) == ["image", "seed"]
    assert body["data"]["seed"] == 7
    picture = picture_in(response)
    assert (picture.format, picture.size, picture.mode) == ("PNG", (320, 320), "RGB")


def test_the_engine_gets_what_was_asked(send: Send, engine: StubEngine) -> None:
    send(
        prompt="  a cat ",
        width="384",
        height="320",
        image_strength="0.5",
        cfg_scale="7.5",
        sampler="K_HEUN",
        steps="20",
        seed="11",
        clip_guidance_preset="SIMPLE",
        negative_prompt="dog",
        headers={"X-Request-Id": "abc-1"},
    )
    request = engine.last_request
    assert request.image.shape == (320, 384, 3)
    assert request.image.dtype == np.uint8
    assert (request.prompt, request.negative_prompt) == ("a cat", "dog")
    assert (request.image_strength, request.cfg_scale) == (0.5, 7.5)
    assert (request.sampler, request.steps, request.seed) == (Sampler.K_HEUN, 20, 11)
    assert request.clip_guidance.value == "SIMPLE"
    assert request.request_id == "abc-1"
    assert engine.timeouts == [300.0]


def test_the_contracts_example_form(send: Send, engine: StubEngine) -> None:
    response = send(prompt="black hair", image_strength="0.35", cfg_scale="7", steps="20")
    assert response.status_code == 200
    request = engine.last_request
    assert (request.width, request.height) == (640, 320)
    assert request.sampler is Sampler.K_DPMPP_2M
    assert request.seed == response.json()["data"]["seed"] >= 1


def test_a_style_is_applied(send: Send, engine: StubEngine) -> None:
    send(style_preset="tile-texture", negative_prompt="moss")
    request = engine.last_request
    assert "a cat" in request.prompt
    assert len(request.prompt) > len("a cat")
    assert "moss" in request.negative_prompt
    assert request.tile


@pytest.mark.parametrize("seed", ["0", "", None])
def test_a_seed_is_chosen_and_told(send: Send, engine: StubEngine, seed: str | None) -> None:
    seeds = {send(seed=seed).json()["data"]["seed"] for _ in range(5)}
    assert len(seeds) > 1
    assert {handle.request.seed for handle in engine.handles} == seeds


def test_resize_modes_differ(send: Send) -> None:
    made = {
        mode: np.asarray(picture_in(send(width="320", height="320", resize_mode=mode)))
        for mode in ("crop", "stretch", "pad")
    }
    assert tuple(made["pad"][5, 160]) == (255, 255, 255)
    assert tuple(made["stretch"][5, 5]) == (255, 0, 0)
    assert corner_colours(Image.fromarray(made["stretch"]))["bottom right"] == (255, 255, 0)


@pytest.mark.parametrize(
    ("keys", "hosts", "clients"),
    [
        # A key has one turn, from however many addresses it is used.
        (["a", "a"], ["192.0.2.1", "198.51.100.7"], 1),
        (["a", "b"], ["192.0.2.1", "192.0.2.1"], 2),
        # Without a key a network has one.
        ([None, None], ["192.0.2.1", "192.0.2.99"], 1),
        ([None, None], ["192.0.2.1", "198.51.100.7"], 2),
        ([None, None], ["2001:db8::1", "2001:db8::ffff:1"], 1),
        ([None, None], ["2001:db8::1", "2001:db8:0:1::1"], 2),
        ([None, None], ["192.0.2.1", "::ffff:192.0.2.2"], 1),
    ],
)
def test_who_takes_turns_at_decoding(
    make_client: MakeClient,
    picture_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
    keys: list[str | None],
    hosts: list[str],
    clients: int,
) -> None:
    seen: list[str] = []

    async def decode(*_: object, client: str, **__: object) -> None:
        seen.append(client)
        raise DecodersBusy("seen")

    monkeypatch.setattr(DecoderPool, "decode", decode)
    app = make_client(api_keys="a,b" if any(keys) else "").app
    for key, host in zip(keys, hosts, strict=True):
        answer = TestClient(app, client=(host, 1)).post(
            PATH,
            data={"prompt": "a cat"},
            files={"init_image": ("a.png", picture_file)},
            headers={"Authorization": key} if key else None,
        )
        assert_failure(answer, 503, "seen")
    assert len(seen) == 2
    assert len(set(seen)) == clients


def test_the_same_request_gives_the_same_bytes(send: Send) -> None:
    assert send(seed="3").content == send(seed="3").content


def test_png_carries_the_settings(send: Send) -> None:
    response = send(prompt="a cat, 猫", steps="20", seed="9", negative_prompt="dog", width="320")
    text = picture_in(response).text["parameters"]  # type: ignore[attr-defined]
    assert text.split("\n") == [
        "a cat, 猫",
        "Negative prompt: dog",
        "Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 9, Size: 320x320, Model: stub, "
        f"Denoising strength: 0.65, Schedule type: Uniform, Version: img2img-server {__version__}",
    ]


# What is wrong with the form


def test_everything_wrong_is_said_at_once(send: Send) -> None:
    message = assert_failure(
        send(
            files={"init_image": ("a.png", b"text")},
            prompt=" ",
            steps="5",
            cfg_scale="40",
            width="500",
            style_preset="x",
        ),
        400,
        "prompt: is required",
        "steps: 5 is not in 10..50",
        "cfg_scale: 40 is not in 0..35",
        "width: 500 is not a multiple of 64 in 320..1536",
        "style_preset: x is not one of 3d-model, analog-film",
    )
    assert message.startswith("init_image: the file is no picture in a known format")
    assert message.count("; ") == 5


def test_what_this_server_does_not_take_is_said_beside_bad_fields(
    make_client: MakeClient, picture_file: bytes, tmp_path: Path
) -> None:
    words = tmp_path / "deny.txt"
    words.write_text("gun\n")
    client = make_client(max_breaks=1, prompt_deny_list=words)
    fields = {
        "prompt": "BREAK a BREAK",
        "negative_prompt": "a gun",
        "steps": "5",
    }
    black = file_of(Image.new("L", (64, 48)))
    for mask in (None, black):
        files = {"init_image": ("a.png", picture_file)}
        files |= {"mask": ("m.png", mask)} if mask else {}
        message = assert_failure(client.post(PATH, data=fields, files=files), 400)
        said = [
            *(["mask: selects no pixel; white is what is made anew"] if mask else []),
            "steps: 5 is not in 10..50",
            "prompt: has BREAK 2 times, over the 1 it may have",
            "negative_prompt: 'gun' is not taken by this server",
        ]
        assert message == "; ".join(said)
    without = {"negative_prompt": "a gun"}
    message = assert_failure(client.post(PATH, data=without, files={"x": ("a", b"")}), 400)
    assert message == (
        "init_image: is required; prompt: is required; "
        "negative_prompt: 'gun' is not taken by this server"
    )


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"other": ("a.png", b"x")}, "init_image: is required"),
        ({"init_image": ("", b"")}, "init_image: is required"),
        ({"init_image": ("a.png", b"")}, "init_image: the file is empty"),
        ({"init_image": (None, "abc")}, "init_image: came as text; send it as a file"),
        ({"init_image": (None, "  ")}, "init_image: is required"),
        ({"init_image": ("a.png", file_of(four_corners())[:90])}, "init_image: the picture is tr"),
    ],
)
def test_problems_of_the_picture(
    send: Send, engine: StubEngine, files: dict[str, Any], problem: str
) -> None:
    message = assert_failure(send(files=files), 400)
    assert message.startswith(problem)
    assert not engine.handles


@pytest.mark.parametrize("form", ["bytes", "data URL", "base64"])
@pytest.mark.parametrize("size", [0, 300_000])
def test_a_picture_as_text_of_any_size_is_told_the_same(
    send: Send, picture_file: bytes, form: str, size: int
) -> None:
    data: str | bytes = picture_file + b"\0" * size
    if form != "bytes":
        data = base64.b64encode(picture_file + b"\0" * size).decode()
        data = f"data:image/png;base64,{data}" if form == "data URL" else data
    message = assert_failure(send(files={"init_image": (None, data)}), 400)
    assert message == "init_image: came as text; send it as a file, with a file name"


def raw_form(picture: bytes, prompt: bytes, *headers: str, encoding: str = "binary") -> bytes:
    """A form with one text field and a picture, written by hand."""
    lines = ['Content-Disposition: form-data; name="prompt"', *headers]
    file_lines = [
        'Content-Disposition: form-data; name="init_image"; filename="a.png"',
        f"Content-Transfer-Encoding: {encoding}",
    ]
    return b"\r\n".join(
        (
            b"--B",
            *(line.encode() for line in lines),
            b"",
            prompt,
            b"--B",
            *(line.encode() for line in file_lines),
            b"",
            picture,
            b"--B--",
            b"",
        )
    )


FORM_B = {"Content-Type": "multipart/form-data; boundary=B"}


def test_text_in_another_charset_is_read_as_it_was_meant(
    client: TestClient, engine: StubEngine, picture_file: bytes
) -> None:
    for body in (
        raw_form(
            picture_file,
            "синий круг".encode("cp1251"),
            "Content-Type: text/plain; charset=windows-1251",
        ),
        raw_form(
            picture_file,
            base64.b64encode("синий круг".encode()),
            "Content-Transfer-Encoding: base64",
        ),
        raw_form(base64.encodebytes(picture_file), "синий круг".encode(), encoding="base64"),
    ):
        assert client.post(PATH, content=body, headers=FORM_B).status_code == 200
        assert engine.last_request.prompt == "синий круг"


def test_what_cannot_be_decoded_is_named_beside_the_rest(
    client: TestClient, engine: StubEngine, picture_file: bytes
) -> None:
    body = raw_form(picture_file, b"caf\xe9")
    message = assert_failure(client.post(PATH, content=body, headers=FORM_B), 400)
    assert message == "prompt: is not valid UTF-8; send it as UTF-8 or declare its charset"
    body = raw_form(b"!", b"caf\xe9", "Content-Type: text/plain; charset=zip", encoding="base64")
    body = body.replace(
        b"--B--", b'--B\r\nContent-Disposition: form-data; name="steps"\r\n\r\n5\r\n--B--'
    )
    message = assert_failure(client.post(PATH, content=body, headers=FORM_B), 400)
    assert message == (
        "init_image: is cut short: its base64 ends within four characters; "
        "steps: 5 is not in 10..50; prompt: the charset zip is not known; send it as UTF-8"
    )
    assert not engine.handles


def test_an_encoded_body_is_refused_by_name(client: TestClient, picture_file: bytes) -> None:
    response = client.post(
        PATH,
        content=gzip.compress(raw_form(picture_file, b"a")),
        headers={**FORM_B, "Content-Encoding": "gzip"},
    )
    assert_failure(response, 415, "Content-Encoding: gzip is not supported; send the body as it is")
    assert response.headers["accept-encoding"] == "identity"


def test_unknown_fields_are_named_whatever_the_answer(send: Send, engine: StubEngine) -> None:
    named = "guidance, init_image%5B%5D"
    fields = {"guidance": "7", "init_image[]": "x"}
    assert send(**fields).headers["x-ignored-fields"] == named
    streamed = send(**fields, headers={"Accept": "text/event-stream"})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["x-ignored-fields"] == named
    assert send(**fields, steps="5").headers["x-ignored-fields"] == named
    engine.refusal = EngineBusy("busy", 3.0)
    assert send(**fields).headers["x-ignored-fields"] == named
    engine.refusal = None
    assert "x-ignored-fields" not in send().headers


def test_a_text_field_that_comes_as_a_file(send: Send, picture_file: bytes) -> None:
    files = {"init_image": ("a.png", picture_file), "prompt": ("prompt.txt", b"a cat")}
    message = assert_failure(send(files=files, prompt=None), 400)
    assert message == "prompt: came as a file; send it as text"


def test_the_last_of_repeated_fields_counts(
    client: TestClient, engine: StubEngine, picture_file: bytes
) -> None:
    response = client.post(
        PATH,
        data={"prompt": ["a dog", "a cat"], "steps": ["500", "12"]},
        files=[("init_image", ("a", b"junk")), ("init_image", ("b", picture_file))],
    )
    assert response.status_code == 200
    assert (engine.last_request.prompt, engine.last_request.steps) == ("a cat", 12)


def test_blank_and_unknown_fields_are_ignored(send: Send, engine: StubEngine) -> None:
    assert send(steps="", sampler=" ", whatever="5").status_code == 200
    assert engine.last_request.steps == 30


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
        (b"prompt", None, 415),
        (b"--x\r\n", "multipart/form-data", 400),
        (b"--x\r\nContent-Disposition: form-da", "multipart/form-data; boundary=x", 400),
        (b"", "multipart/form-data; boundary=x", 400),
    ],
)
def test_bodies_that_are_no_form(
    client: TestClient, body: bytes, content_type: str | None, status: int
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    said = "multipart/form-data" if status == 415 else "malformed multipart form"
    assert_failure(client.post(PATH, content=body, headers=headers), status, said)


# Limits


def test_file_over_the_limit(make_client: MakeClient, picture_file: bytes) -> None:
    client = make_client(max_upload_mib=0.5)
    oversized = picture_file + b"\x00" * (512 * 1024 + 1 - len(picture_file))
    response = client.post(PATH, data={"prompt": "a"}, files={"init_image": ("a", oversized)})
    assert_failure(response, 413, "init_image: the file is over 0.5 MiB")
    response = client.post(PATH, data={"prompt": "a"}, files={"init_image": ("a", oversized[:-1])})
    assert response.status_code == 200


def test_declared_length_over_the_limit_is_refused_unread(client: TestClient) -> None:
    for length in (str(41 * 1024 * 1024 + 1), "9" * 5000):
        headers = {"content-length": length, "content-type": "multipart/form-data; boundary=x"}
        assert_failure(client.post(PATH, content=b"", headers=headers), 413, "over 41 MiB")


def test_chunked_body_over_the_limit_is_cut_off(make_client: MakeClient) -> None:
    client = make_client(max_upload_mib=0.1)
    sent: list[int] = []

    def chunks() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\n'
        for _ in range(40):
            sent.append(1)
            yield b"y" * 100_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert_failure(client.post(PATH, content=chunks(), headers=headers), 413, "over 1.2 MiB")


def test_a_picture_and_a_mask_may_both_be_as_large_as_one(
    make_client: MakeClient, picture_file: bytes
) -> None:
    client = make_client(max_upload_mib=2)
    largest = picture_file + b"\x00" * (2 * 1024 * 1024 - len(picture_file))
    files = {"init_image": ("a.png", largest), "mask": ("m.png", largest)}
    response = client.post(PATH, data={"prompt": "a"}, files=files)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("length", [2001, 70_000, 200_000])
def test_a_prompt_too_long_hides_no_other_error(
    client: TestClient, picture_file: bytes, length: int
) -> None:
    response = client.post(
        PATH,
        data={"prompt": "a" * length, "cfg_scale": "99"},
        files={"init_image": ("a.png", picture_file)},
    )
    assert_failure(response, 400, "prompt: ", "cfg_scale: 99 is not in")


# What the engine says


@pytest.mark.parametrize(
    ("refusal", "retry_after"),
    [
        (EngineBusy("3 requests are waiting already", 3.2), "4"),
        (EngineDraining("the server is shutting down", 5.0), "5"),
        (EngineDead("the engine is not running", 30.0), "30"),
    ],
)
def test_refusals(send: Send, engine: StubEngine, refusal: Any, retry_after: str) -> None:
    engine.refusal = refusal
    response = send()
    assert_failure(response, 503, str(refusal))
    assert response.headers["retry-after"] == retry_after


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (DeadlineExceeded("late"), 504),
        (GenerationCancelled("withdrawn"), 503),
        (EngineDraining("the server is shutting down", 5.0), 503),
        (GenerationFailed("the secret inside"), 500),
        (EngineDead("the secret inside"), 500),
        (RuntimeError("the secret inside"), 500),
    ],
)
def test_outcomes(
    send: Send,
    engine: StubEngine,
    outcome: BaseException,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.outcome = outcome
    message = assert_failure(send(headers={"X-Request-Id": "id-1"}), status)
    if status == 500:
        assert message == "internal error, request id id-1"
        (logged,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert logged.exc_info
        assert "the secret inside" in str(logged.exc_info[1])


def test_a_picture_that_cannot_be_encoded_is_an_internal_error(
    send: Send, engine: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError("the secret inside")

    monkeypatch.setattr("server.img2img.service.encode_image", broken)
    message = assert_failure(send(), 500)
    assert "secret" not in message


def test_an_engine_that_has_died_refuses_before_the_body(
    client: TestClient, engine: StubEngine
) -> None:
    engine.ready = engine.alive = False
    assert_failure(client.post(PATH, content=b"never parsed"), 503, "the engine has stopped")


# A client that leaves


def form_body(picture: bytes) -> tuple[bytes, bytes]:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n--x\r\n'
        b'Content-Disposition: form-data; name="init_image"; filename="a"\r\n\r\n'
        + picture
        + b"\r\n--x--\r\n"
    )
    return b"multipart/form-data; boundary=x", body


def call_and_leave(client: TestClient, messages: list[Message], wait_for: Any) -> list[Message]:
    """Runs the application on a request whose client leaves once `wait_for()` is true."""

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        while not wait_for():
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    return call(client, PATH, receive, [(b"content-type", form_body(b"")[0])])


def access_line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = [record for record in caplog.records if record.name == "server.access"]
    fields = record.fields  # type: ignore[attr-defined]
    assert isinstance(fields, dict)
    return fields


def test_client_that_leaves_while_it_waits_withdraws_its_request(
    client: TestClient, engine: StubEngine, picture_file: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine.holding = True
    body = form_body(picture_file)[1]
    sent = call_and_leave(
        client, [{"type": "http.request", "body": body}], lambda: bool(engine.handles)
    )
    assert sent == []
    assert engine.handles[0].cancelled
    assert access_line(caplog)["status"] == 499


def test_client_that_leaves_while_it_sends(
    client: TestClient, engine: StubEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    part = {"type": "http.request", "body": form_body(b"")[1][:50], "more_body": True}
    assert call_and_leave(client, [part], lambda: True) == []
    assert not engine.handles
    assert access_line(caplog)["status"] == 499


def test_an_upload_that_stalls_is_given_up(make_client: MakeClient, engine: StubEngine) -> None:
    client = make_client(request_timeout=0.05)
    part = {"type": "http.request", "body": form_body(b"")[1][:50], "more_body": True}
    sent = call_and_leave(client, [part], lambda: False)
    assert sent[0]["status"] == 504
    assert "the upload was not complete" in json.loads(sent[1]["body"])["message"]


def test_break_may_stand_sixteen_times(
    make_client: MakeClient, engine: StubEngine, picture_file: bytes
) -> None:
    def post(client: TestClient, **fields: str) -> Any:
        return client.post(PATH, data=fields, files={"init_image": ("a.png", picture_file)})

    client = make_client()
    assert post(client, prompt="a BREAK " * 16, negative_prompt="(b BREAK:1.2)" * 16).is_success
    message = assert_failure(
        post(client, prompt="BREAK " * 333, negative_prompt="x (BREAK " * 17), 400
    )
    assert message == (
        "prompt: has BREAK 333 times, over the 16 it may have; "
        "negative_prompt: has BREAK 17 times, over the 16 it may have"
    )
    # No other text is refused for its tokens.
    assert post(client, prompt="\u732b" * 2000, negative_prompt="\U0001f600" * 2000).is_success
    few = make_client(max_breaks=1)
    assert "over the 1 it may" in assert_failure(post(few, prompt="BREAK a BREAK"), 400)


def test_texts_are_read_off_the_event_loop(
    send: Send, engine: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deny list and the engine both parse weights."""
    on_loop: dict[str, bool] = {}

    def watched(name: str, work: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            try:
                asyncio.get_running_loop()
                on_loop[name] = True
            except RuntimeError:
                on_loop[name] = False
            return work(*arguments, **named)

        return run

    monkeypatch.setattr(engine, "submit", watched("submit", engine.submit))
    monkeypatch.setattr(DenyList, "find", watched("find", DenyList.find))
    assert send(prompt="(a:1.2)", negative_prompt="[b]").status_code == 200
    assert on_loop == {"submit": False, "find": False}


@settings(suppress_health_check=list(HealthCheck))
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_no_text_is_an_internal_error(send: Send, engine: StubEngine, text: str) -> None:
    response = send(prompt=f"a {text}", negative_prompt=text)
    assert response.status_code in (200, 400), response.text


def test_half_a_surrogate_pair_is_refused() -> None:
    form, problems = parse_form({"prompt": "a \ud83d cat"})
    assert form is None
    assert problems == ["prompt: holds half of a surrogate pair, which is no character"]
