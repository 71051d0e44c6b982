"""Work that is waited for is ended, or undone, whatever ends the waiting."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from server.http.waiting import TimeLimit, within


def waits(receive: Any, work: Any, undo: Any = lambda _: None) -> Any:
    limit = TimeLimit(60, time.monotonic() + 60)
    return within(Request({"type": "http"}, receive), limit, work, undo)


async def endless() -> None:
    await asyncio.Event().wait()


async def stays() -> Message:
    await endless()
    raise AssertionError


def test_who_leaves_has_left_and_the_work_is_cancelled() -> None:
    cancelled = False

    async def leaves() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def work() -> None:
        nonlocal cancelled
        try:
            await endless()
        finally:
            cancelled = True

    with pytest.raises(ClientDisconnect):
        asyncio.run(waits(leaves, work()))
    assert cancelled


def test_an_error_of_listening_is_not_taken_for_a_client_that_leaves() -> None:
    async def breaks() -> Message:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(waits(breaks, endless()))


@pytest.mark.parametrize("rounds", range(4))
def test_what_was_begun_is_undone_if_the_waiting_is_cancelled_as_it_ends(rounds: int) -> None:
    """As a forced shutdown does; so many rounds of the event loop after the work's end."""
    undone: list[str] = []
    got: list[str] = []

    async def scene() -> None:
        ended = asyncio.Event()

        async def work() -> str:
            ended.set()
            return "begun"

        async def waiting() -> None:
            got.append(await waits(stays, work(), lambda work: undone.append(work.result())))

        task = asyncio.ensure_future(waiting())
        await ended.wait()
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert got + undone == ["begun"]
