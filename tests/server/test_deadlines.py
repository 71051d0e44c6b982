"""The server's own deadlines: what hangs, what cannot be done in time, who has left."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from models.bundle import ModelBundle
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.errors import EngineStalled, RequestTooLong
from pipelines.request import Pixels
from pipelines.scheduler.cost_model import CostTable, ImageCost, StepPoint
from server.accounts.ledger import Ledger
from server.accounts.types import Balance, Order, State
from server.app import create_app
from server.engine_service import LoadedModel
from server.http.waiting import TimeLimit
from server.images.workers.pool import DecoderPool
from server.img2img.moderation import SafetyPolicy
from server.settings import Settings
from tests.server.conftest import PATH, MakeClient
from tests.server.databases import sqlite_url
from tests.server.failures import assert_failure
from tests.server.raw_asgi import Message, call
from tests.server.stub_engine import StubEngine
from tests.server.team import Team
from tests.server.test_image_to_image import call_and_leave, form_body

EVENTS = {"Accept": "text/event-stream"}
NOT_FINISHED = "the picture was not finished within 0.3 s"


def post(client: TestClient, picture: bytes, headers: Any = None, **fields: str) -> Any:
    return client.post(
        PATH,
        data={"prompt": "a cat", "width": "320", "height": "320", **fields},
        files={"init_image": ("a.png", picture)},
        headers=headers,
    )


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


# A unit that does not end


def test_the_answer_comes_at_the_deadline_whatever_the_engine_does(
    make_client: MakeClient, engine: StubEngine, picture_file: bytes
) -> None:
    client = make_client(request_timeout=0.3, api_keys=["k"], concurrency=1)
    engine.holding = True
    for _ in range(2):  # the first one's place is free again
        message = assert_failure(post(client, picture_file, {"Authorization": "k"}), 504)
        assert message == NOT_FINISHED
        assert engine.handles[-1].cancelled


@pytest.mark.parametrize("silent", [False, True])
def test_an_event_stream_ends_at_the_deadline_too(
    make_client: MakeClient, engine: StubEngine, picture_file: bytes, silent: bool
) -> None:
    """Whether it waits for progress or for the answer."""
    client = make_client(request_timeout=0.3)
    engine.holding, engine.silent = True, silent
    response = post(client, picture_file, EVENTS)
    event = response.text.strip().split("\n\n")[-1]
    name, data = event.split("\n")
    assert name == "event: result"
    assert json.loads(data.removeprefix("data: ")) == {
        "code": -1,
        "message": NOT_FINISHED,
        "data": None,
        "status": 504,
    }
    assert engine.handles[-1].cancelled


@pytest.mark.process
@pytest.mark.parametrize("headers", [{}, EVENTS])
def test_what_was_not_finished_is_not_charged(
    make_client: MakeClient,
    engine: StubEngine,
    picture_file: bytes,
    tmp_path: Path,
    headers: dict[str, str],
) -> None:
    team = Team(sqlite_url(tmp_path))
    key = team.make_key()
    client = make_client(database_url=team.url, request_timeout=3.0)
    engine.holding = True
    assert "not finished" in post(client, picture_file, {"Authorization": key, **headers}).text
    team.wait_for({State.RELEASED: 1})
    assert team.balance() == Balance(100, 0)
    assert team.problems() == []


class HangingScorer:
    """A safety check that waits for `release`."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.obstacle: str | None = None
        self.alive = True
        self.asked = 0

    def score(self, _: Pixels) -> float:
        self.asked += 1
        assert self.release.wait(60)
        return -1.0


def test_a_safety_check_that_hangs_delays_no_answer_and_ends_readiness(
    make_client: MakeClient, engine: StubEngine, picture_file: bytes
) -> None:
    scorer = HangingScorer()
    engine.safety = SafetyPolicy("blur", 0.0, scorer)
    client = make_client(request_timeout=0.3)
    try:
        assert_failure(post(client, picture_file), 504, NOT_FINISHED)
    finally:
        scorer.release.set()
    scorer.obstacle = "the safety check hangs, for 41 s now"
    assert_failure(client.get("/health/ready"), 503, scorer.obstacle)
    assert_failure(post(client, picture_file), 503, scorer.obstacle)
    assert client.get("/health/live").status_code == 200
    scorer.alive = False
    assert_failure(client.get("/health/live"), 503, scorer.obstacle)


def test_threads_whose_requests_have_ended_count_until_they_end(
    make_client: MakeClient, engine: StubEngine, picture_file: bytes
) -> None:
    scorer = HangingScorer()
    engine.safety = SafetyPolicy("blur", 0.0, scorer)
    client = make_client(request_timeout=0.3, picture_threads=2)
    try:
        wait_until(lambda: post(client, picture_file).status_code == 504 and scorer.asked == 2)
        for _ in range(2):
            assert_failure(post(client, picture_file), 504, NOT_FINISHED)
        assert scorer.asked == 2
    finally:
        scorer.release.set()
    wait_until(lambda: post(client, picture_file).status_code == 200)


def test_while_the_engine_hangs_it_is_not_ready_and_refuses(
    make_client: MakeClient, engine: StubEngine, picture_file: bytes
) -> None:
    client = make_client()
    engine.obstacle = "the engine's unit of work hangs, for 12 s now"
    assert_failure(client.get("/health/ready"), 503, engine.obstacle)
    assert client.get("/health/live").status_code == 200
    assert_failure(client.post(PATH, content=b"never parsed"), 503, engine.obstacle)
    engine.alive = False
    assert_failure(client.get("/health/live"), 503, engine.obstacle)
    engine.obstacle, engine.alive = None, True
    assert client.get("/health/ready").status_code == 200
    engine.refusal = EngineStalled("the engine's unit of work hangs, for 10 s now", 17.2)
    refused = post(client, picture_file)
    assert_failure(refused, 503, "unit of work hangs")
    assert refused.headers["retry-after"] == "18"


@pytest.fixture
def hanging(tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Every forward of the U-Net waits for the event."""
    release, forward = threading.Event(), tiny.unet.forward

    def wait(*args: Any, **kwargs: Any) -> Any:
        assert release.wait(60)
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny.unet, "forward", wait)
    yield release
    release.set()


def test_a_real_engine_whose_unit_hangs_and_comes_back(
    tiny: ModelBundle, hanging: threading.Event, picture_file: bytes
) -> None:
    points = [StepPoint(pixels, rows, 1e-6) for pixels in (16, 4096) for rows in (1, 64)]
    costs = CostTable(points, ImageCost(0.0, 0.0), ImageCost(0.0, 0.0))
    config = EngineConfig(warm_up=False, hang_seconds=0.3)

    def starter(_: Settings) -> LoadedModel:
        return LoadedModel(Engine(tiny, config, costs), "tiny", "cpu", "float32")

    app = create_app(Settings(request_timeout=1.0), starter=starter)
    with TestClient(app) as client:

        def readiness() -> int:
            return client.get("/health/ready").status_code

        wait_until(lambda: readiness() == 200)
        # The first decoder has to start, which a busy machine takes longer for than the limit.
        wait_until(lambda: post(client, picture_file, image_strength="1").status_code == 200)
        assert_failure(post(client, picture_file), 504, "not finished within 1 s")
        wait_until(lambda: readiness() == 503)
        assert_failure(client.get("/health/ready"), 503, "unit of work hangs")
        assert client.get("/health/live").status_code == 200
        assert_failure(post(client, picture_file), 503, "unit of work hangs")
        hanging.set()
        wait_until(lambda: readiness() == 200)
        assert post(client, picture_file, image_strength="1").status_code == 200


# What cannot be done in time


@pytest.mark.parametrize("headers", [{}, EVENTS])
def test_what_takes_too_long_in_itself_is_bad_input_and_costs_nothing(
    make_client: MakeClient,
    engine: StubEngine,
    picture_file: bytes,
    tmp_path: Path,
    headers: dict[str, str],
) -> None:
    team = Team(sqlite_url(tmp_path))
    key = team.make_key()
    client = make_client(database_url=team.url)
    engine.refusal = RequestTooLong("1536 x 1536 at 50 steps", 409.2, 300.0)
    response = post(client, picture_file, {"Authorization": key, **headers})
    assert assert_failure(response, 400) == (
        "width, height, steps: 1536 x 1536 at 50 steps takes about 410 s here, over the limit of "
        "300 s; a smaller picture or fewer steps take less"
    )
    assert "retry-after" not in response.headers
    assert team.balance() == Balance(100, 0)


# From the arrival on


def slowly(body: bytes, seconds: float) -> Callable[[], Any]:
    """A client that takes as long for its upload, and then waits."""
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        if messages:
            await asyncio.sleep(seconds)
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def test_the_upload_is_part_of_the_time(
    make_client: MakeClient, engine: StubEngine, picture_file: bytes
) -> None:
    client = make_client(request_timeout=20.0)
    content_type, body = form_body(picture_file)
    began = time.monotonic()
    call(client, PATH, slowly(body, 0.5), [(b"content-type", content_type)])
    (arrived,) = engine.arrivals
    assert arrived is not None
    assert began <= arrived < began + 0.4
    assert engine.timeouts == [20.0]


def test_decoding_is_part_of_the_time(
    make_client: MakeClient,
    engine: StubEngine,
    picture_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def decode(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(DecoderPool, "decode", decode)
    client = make_client(request_timeout=0.3)
    assert_failure(post(client, picture_file), 504, NOT_FINISHED)
    assert not engine.handles


def test_a_time_limit_tells_its_own_end_from_that_of_others() -> None:
    async def failing() -> None:
        raise TimeoutError("of something else")

    with pytest.raises(TimeoutError, match="of something else"):
        asyncio.run(TimeLimit(5.0, time.monotonic() + 5.0).apply(failing()))


# A client that leaves before its picture is under way


def test_a_client_that_leaves_while_its_picture_is_decoded(
    client: TestClient,
    engine: StubEngine,
    picture_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoding, ended = threading.Event(), threading.Event()

    async def decode(*_: object, **__: object) -> None:
        decoding.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    monkeypatch.setattr(DecoderPool, "decode", decode)
    messages: list[Message] = [{"type": "http.request", "body": form_body(picture_file)[1]}]
    assert call_and_leave(client, messages, decoding.is_set) == []
    assert ended.is_set()
    assert not engine.handles


def test_a_client_that_leaves_while_its_price_is_reserved_is_not_charged(
    make_client: MakeClient,
    engine: StubEngine,
    picture_file: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team = Team(sqlite_url(tmp_path))
    key = team.make_key()
    client = make_client(database_url=team.url)
    reserve, reserving = Ledger.reserve, threading.Event()

    async def slow(self: Ledger, order: Order) -> bytes | None:
        reserving.set()
        await asyncio.sleep(0.3)
        return await reserve(self, order)

    monkeypatch.setattr(Ledger, "reserve", slow)
    content_type, body = form_body(picture_file)
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        while not reserving.is_set():
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    headers = [(b"content-type", content_type), (b"authorization", key.encode())]
    assert call(client, PATH, receive, headers) == []
    team.wait_for({State.RELEASED: 1})
    assert not engine.handles
    assert team.balance() == Balance(100, 0)
