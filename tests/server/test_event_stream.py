"""The stream of events says something even where nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from pipelines.request import GenerationRequest, GenerationResult, Progress
from server import event_stream
from server.event_stream import KEEP_ALIVE, kept_alive
from tests.server.conftest import PATH, MakeClient
from tests.server.stub_engine import StubEngine, StubHandle


class QuietHandle(StubHandle):
    """Waits a while for its place, and again for its picture."""

    async def progress(self) -> AsyncIterator[Progress]:
        await asyncio.sleep(0.2)
        yield Progress(1, 1)

    async def result(self) -> GenerationResult:
        await asyncio.sleep(0.2)
        return await super().result()


def test_comments_come_while_it_waits_and_while_it_computes(
    make_client: MakeClient,
    engine: StubEngine,
    picture_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def submit(request: GenerationRequest, timeout: float | None = None) -> StubHandle:
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
