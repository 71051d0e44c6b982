"""Work that is waited for is ended, or undone, whatever ends the waiting."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from pipelines.errors import DeadlineExceeded
from server.http.waiting import TimeLimit, outcomes_of, within


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


def test_where_time_is_up_the_first_that_comes_is_waited_for_and_the_rest_is_late() -> None:
    withdrawn: list[bool] = []

    async def comes(result: str, after: asyncio.Event | None = None) -> str:
        if after is not None:
            await after.wait()
        if result == "fails":
            raise ZeroDivisionError
        return result

    async def scene() -> list[str | Exception]:
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, later.set)
        up = TimeLimit(60, time.monotonic())
        work = [comes("fails"), comes("first", later), comes("never", asyncio.Event())]
        return await outcomes_of(work, up, lambda: withdrawn.append(True))

    failed, first, late = asyncio.run(scene())
    assert isinstance(failed, ZeroDivisionError)
    assert first == "first"
    assert isinstance(late, DeadlineExceeded)
    assert withdrawn == [True]


def test_those_that_come_together_near_the_end_are_all_answered() -> None:
    async def comes(result: str) -> str:
        await asyncio.sleep(0.02 * int(result))
        return result

    async def scene() -> list[str | Exception]:
        limit = TimeLimit(60, time.monotonic() + 1.9)
        assert limit.made_by < time.monotonic() < limit.answer_by < limit.deadline
        return await outcomes_of([comes(f"{n}") for n in range(4)], limit, lambda: None)

    assert asyncio.run(scene()) == ["0", "1", "2", "3"]


def test_one_alone_has_all_of_its_time() -> None:
    async def comes() -> str:
        await asyncio.sleep(0.05)
        return "there"

    up = TimeLimit(60, time.monotonic())
    assert asyncio.run(outcomes_of([comes()], up, lambda: None)) == ["there"]
