"""The stream of events says something even where nothing happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from pipelines.request import GenerationRequest, GenerationResult, Progress
from server.http.errors import ApiError
from server.http.waiting import TimeLimit
from server.img2img import events as event_stream
from server.img2img.events import KEEP_ALIVE, kept_alive, stream_response
from tests.server.conftest import PATH, MakeClient
from tests.server.pictures import four_corners
from tests.server.stub_engine import StubEngine, StubHandle


@pytest.fixture
def request_of_any_kind() -> GenerationRequest:
    return GenerationRequest(image=four_corners(64, 64), prompt="a cat", seed=1)


class QuietHandle(StubHandle):
    """Waits a while for its place, and again for its picture."""

    async def progress(self) -> AsyncIterator[Progress]:
        await asyncio.sleep(0.2)
        yield Progress(30, 30, 1, 1)

    async def result(self) -> GenerationResult:
        await asyncio.sleep(0.2)
        return await super().result()


def test_comments_come_while_it_waits_and_while_it_computes(
    make_client: MakeClient,
    engine: StubEngine,
    picture_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def submit(
        request: GenerationRequest, timeout: float | None = None, arrived: float | None = None
    ) -> StubHandle:
        return QuietHandle(engine, request)

    monkeypatch.setattr(engine, "submit", submit)
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_SECONDS", 0.05)
    answer = make_client().post(
        PATH,
        data={"prompt": "a cat"},
        files={"init_image": ("a.png", picture_file)},
        headers={"Accept": "text/event-stream"},
    )
    waiting, _, rest = answer.text.partition("event: progress")
    computing, _, result = rest.partition("event: result")
    comment = KEEP_ALIVE.decode()
    assert waiting.startswith(comment)
    assert comment in computing
    data = '{"step":30,"steps":30,"evaluation":1,"evaluations":1,"queue_position":0}'
    assert computing.startswith(f"\ndata: {data}\n\n")
    assert comment not in result
    assert '"code":0' in result


def test_a_stream_is_never_silent_for_longer_than_proxies_wait() -> None:
    assert event_stream.KEEP_ALIVE_SECONDS <= 15


def test_events_are_ended_before_a_stream_that_is_left_is() -> None:
    ended = False

    async def events() -> AsyncGenerator[bytes]:
        nonlocal ended
        try:
            await asyncio.sleep(60)
            yield b""
        finally:
            await asyncio.sleep(0.05)
            ended = True

    async def left() -> None:
        stream = kept_alive(events())
        step = asyncio.ensure_future(anext(aiter(stream)))
        await asyncio.sleep(0.01)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step

    asyncio.run(left())
    assert ended


@pytest.mark.parametrize("stuck_in", ["http.response.start", "http.response.body", "nothing"])
def test_a_client_that_leaves_withdraws_its_request_wherever_the_stream_is(
    engine: StubEngine, request_of_any_kind: GenerationRequest, stuck_in: str
) -> None:
    """While something is sent, that is, and while nothing is there to send."""
    handle = StubHandle(engine, request_of_any_kind)
    engine.silent = True
    reached = asyncio.Event()

    async def answer() -> bytes:
        raise AssertionError

    async def failed(error: Exception) -> ApiError:
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == stuck_in:
            reached.set()
            await asyncio.Event().wait()
        if stuck_in == "nothing" and message.get("body"):
            reached.set()

    async def receive() -> Message:
        await reached.wait()
        return {"type": "http.disconnect"}

    async def scene() -> bool:
        stream = stream_response(handle, answer, TimeLimit(60, time.monotonic() + 60), failed)
        await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
        return handle.cancelled

    assert asyncio.run(scene())


def test_an_http_1_0_client_gets_an_ordinary_answer(
    make_client: MakeClient, picture_file: bytes
) -> None:
    """It knows no chunks, so it could not tell a stream's end from a connection that broke."""
    client = make_client()
    application = client.app

    async def old(scope: Any, receive: Any, send: Any) -> None:
        await application(scope | {"http_version": "1.0"}, receive, send)  # type: ignore[arg-type]

    answer = TestClient(old).post(
        PATH,
        data={"prompt": "a cat"},
        files={"init_image": ("a.png", picture_file)},
        headers={"Accept": "text/event-stream"},
    )
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.content)["code"] == 0
