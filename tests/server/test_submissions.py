"""Handing requests to an engine that does not answer: nobody else waits for that."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio.to_thread

from server.engine_service import LoadedModel
from server.img2img.deny_list import DenyList
from server.img2img.images_request import Plan
from server.img2img.service import SUBMITTED_AT_ONCE, ImageToImage
from server.settings import Settings
from tests.server.replicas.fakes import picture
from tests.server.stub_engine import StubEngine, StubHandle


class FrozenEngine(StubEngine):
    """Answers no submission before it is thawed."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = True
        self.asked = 0
        self.thawed = threading.Event()

    def submit(self, *args: Any, **options: Any) -> StubHandle:
        self.asked += 1
        assert self.thawed.wait(60)
        return super().submit(*args, **options)


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_an_engine_that_does_not_answer_keeps_no_thread_that_others_need() -> None:
    engine = FrozenEngine()
    service = ImageToImage(Settings(), None, DenyList())  # type: ignore[arg-type]
    plan, model = Plan((picture(),)), LoadedModel(engine, "stub", "cpu", "float32")

    async def ask() -> None:
        asking = [
            asyncio.ensure_future(service.run(plan, model)) for _ in range(SUBMITTED_AT_ONCE + 20)
        ]
        try:
            await until(lambda: engine.asked == SUBMITTED_AT_ONCE)
            async with asyncio.timeout(10):
                await anyio.to_thread.run_sync(int)
            for one in asking:
                one.cancel()
            await asyncio.wait(asking)
        finally:
            engine.thawed.set()
        # Who had waited for a thread alone has asked for nothing.
        await until(lambda: len(engine.handles) == SUBMITTED_AT_ONCE)
        await until(lambda: all(handle.cancelled for handle in engine.handles))
        assert engine.asked == SUBMITTED_AT_ONCE

    asyncio.run(ask())
