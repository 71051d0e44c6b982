"""Requests by several APIs at once: none is in the way of another, or holds more than it needs."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipelines.errors import EngineDraining, GenerationFailed
from server.api.a1111_form import styles_of
from server.errors import SafetyCheckHangs
from tests.server.apis import GENERATIONS, STABILITY, Apis, message_of
from tests.server.conftest import PATH, MakeClient
from tests.server.pictures import file_of
from tests.server.stub_engine import StubEngine

FORMS = ("contract", "openai", "stability")


@pytest.fixture
def engine() -> StubEngine:
    return StubEngine()


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


def contract(client: TestClient, image: bytes, **headers: str) -> Any:
    fields = {"prompt": "a cat", "steps": "10"}
    return client.post(PATH, data=fields, files={"init_image": ("a.png", image)}, headers=headers)


def asking(apis: Apis, api: str, image: bytes, **headers: str) -> Callable[[], Any]:
    text = base64.b64encode(image).decode()
    match api:
        case "contract":
            return lambda: contract(apis.client, image, **headers)
        case "openai":
            return lambda: apis.edit(files={"image": ("a.png", image)}, headers=headers)
        case "openai json":
            body = {"prompt": "a cat", "image": f"data:image/png;base64,{text}"}
            return lambda: apis.json("/v1/images/edits", body)
        case "stability":
            return lambda: apis.stability(files={"init_image": ("a.png", image)}, headers=headers)
        case "masking":
            files = {"init_image": ("a.png", image), "mask_image": ("b.png", image)}
            return lambda: apis.stability(
                path="/image-to-image/masking", files=files, mask_source="MASK_IMAGE_WHITE"
            )
        case "a1111 from noise":
            return lambda: apis.json("/sdapi/v1/txt2img", {"prompt": "a", "init_images": [text]})
        case "openai from noise":
            return lambda: apis.json(GENERATIONS, {"prompt": "a", "image": text})
        case "stability from noise":
            body = {"text_prompts": [{"text": "a"}], "odd": text}
            return lambda: apis.json(f"{STABILITY}/text-to-image", body)
        case _:
            return lambda: apis.img2img(init_images=[text], mask=text)


class Asked:
    """A request that waits at the engine, in a thread of its own."""

    def __init__(self, engine: StubEngine, ask: Callable[[], Any]) -> None:
        engine.holding = True
        self.answers: list[Any] = []
        self._thread = threading.Thread(target=lambda: self.answers.append(ask()))
        self._thread.start()
        give_up = time.monotonic() + 30
        while not engine.handles:
            assert time.monotonic() < give_up
            assert self._thread.is_alive(), self.answers
            time.sleep(0.005)

    def answer(self) -> Any:
        self._thread.join(30)
        return self.answers[0]


@pytest.mark.parametrize("way", ["interrupt", "skip"])
@pytest.mark.parametrize("api", FORMS)
def test_an_interruption_is_of_its_own_api(
    apis: Apis, engine: StubEngine, picture_file: bytes, api: str, way: str
) -> None:
    asked = Asked(engine, asking(apis, api, picture_file))
    for _ in range(20):
        assert apis.client.post(f"/sdapi/v1/{way}").status_code == 200
        assert apis.client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
        time.sleep(0.005)
    engine.holding = False
    assert asked.answer().status_code == 200
    assert not engine.handles[0].cancelled


@pytest.mark.parametrize(
    "api",
    [
        *("contract", "openai", "openai json", "openai from noise", "a1111", "a1111 from noise"),
        *("stability", "masking", "stability from noise"),
    ],
)
def test_an_upload_is_not_held_while_it_is_worked_on(
    apis: Apis, engine: StubEngine, api: str
) -> None:
    image = file_of(Image.frombytes("RGB", (640, 640), os.urandom(640 * 640 * 3)))
    ask = asking(apis, api, image)
    tracemalloc.start()
    try:
        asked = Asked(engine, ask)
        give_up = time.monotonic() + 30
        budget = apis.client.app.state.byte_budget  # type: ignore[attr-defined]
        while budget.held:
            assert time.monotonic() < give_up
            time.sleep(0.005)
        readers = [
            tracemalloc.Filter(True, f"*/server/http/{name}.py")
            for name in ("multipart", "json_body")
        ]
        held = tracemalloc.take_snapshot().filter_traces(readers).statistics("filename")
    finally:
        tracemalloc.stop()
    engine.holding = False
    assert asked.answer().status_code == 200
    assert sum(found.size for found in held) < len(image) / 10


def test_images_that_an_answer_gives_back_are_counted_until_then(
    apis: Apis, engine: StubEngine
) -> None:
    scripts = {"controlnet": {"args": [{"image": "A" * 50_000}]}}
    asked = Asked(engine, lambda: apis.img2img(alwayson_scripts=scripts))
    assert apis.client.app.state.byte_budget.held > 50_000  # type: ignore[attr-defined]
    engine.holding = False
    assert asked.answer().status_code == 200


def test_a_style_counts_once(apis: Apis, engine: StubEngine) -> None:
    assert styles_of(["Anime", "anime", "none", "odd"] * 9) == (("anime",), ["odd"] * 9)
    once = apis.img2img(styles=["anime"], seed=1)
    many = apis.img2img(styles=["anime"] * 5_000, seed=1)
    assert (once.status_code, many.status_code) == (200, 200)
    assert engine.handles[0].request.prompt == engine.handles[1].request.prompt


def test_prompts_are_counted_before_they_are_read(apis: Apis) -> None:
    body = {"text_prompts": [{"text": {}}] * 2_000}
    response = apis.json(f"{STABILITY}/text-to-image", body)
    assert response.status_code == 400
    assert message_of(response) == "text_prompts: 2000 are over the 50 there may be"


@pytest.mark.parametrize("finds", ["what is kept", "what goes on"])
def test_who_finds_a_run_that_failed_is_told_when_to_ask_again(
    apis: Apis, engine: StubEngine, picture_file: bytes, finds: str
) -> None:
    engine.outcome = SafetyCheckHangs()
    named = {"X-Run-Id": "0123456789abcdef", "Accept": "text/event-stream"}
    asked = Asked(engine, lambda: contract(apis.client, picture_file, **named))
    path = "/api/runs/0123456789abcdef"
    if finds == "what goes on":
        found: list[Any] = []
        finding = threading.Thread(target=lambda: found.append(apis.client.get(path)))
        finding.start()
        finding.join(0.3)
        engine.holding = False
        finding.join(30)
        answer = found[0]
        asked.answer()
    else:
        engine.holding = False
        asked.answer()
        answer = apis.client.get(path)
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, "5")


@pytest.mark.parametrize("api", ["contract", "openai"])
def test_a_stream_tells_a_failure_that_nobody_foresaw(
    apis: Apis, engine: StubEngine, picture_file: bytes, api: str
) -> None:
    engine.outcome = RuntimeError("odd")
    if api == "contract":
        response = contract(apis.client, picture_file, Accept="text/event-stream")
        name, told = last_event(response.text)
        assert (name, told["code"], told["status"]) == ("result", -1, 500)
    else:
        body = {"prompt": "a cat", "stream": True}
        name, told = last_event(apis.json(GENERATIONS, body).text)
        assert (name, told["type"], told["error"]["type"]) == ("error", "error", "server_error")
    assert "odd" not in json.dumps(told)


@pytest.mark.parametrize("stream", ["contract", "run", "openai"])
@pytest.mark.parametrize(
    ("failure", "seconds"), [(EngineDraining("closing", 7.0), 7), (GenerationFailed("odd"), None)]
)
def test_a_stream_tells_when_to_ask_again_as_a_plain_answer_does(
    apis: Apis,
    engine: StubEngine,
    picture_file: bytes,
    stream: str,
    failure: Exception,
    seconds: int | None,
) -> None:
    engine.outcome = failure
    if stream == "openai":
        plain = apis.json(GENERATIONS, {"prompt": "a cat"})
        _, told = last_event(apis.json(GENERATIONS, {"prompt": "a cat", "stream": True}).text)
        told = told["error"]
    else:
        named = {"X-Run-Id": "0123456789abcdef"} if stream == "run" else {}
        plain = contract(apis.client, picture_file)
        events = contract(apis.client, picture_file, Accept="text/event-stream", **named)
        _, told = last_event(events.text)
    assert plain.headers.get("retry-after") == (None if seconds is None else str(seconds))
    assert told.get("retry_after") == seconds


def last_event(text: str) -> tuple[str, dict[str, Any]]:
    name, data = text.strip().split("\n\n")[-1].split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))
