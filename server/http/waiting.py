"""Waits for work no longer than the request's time and its client's patience allow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from pipelines.errors import DeadlineExceeded
from server.http.deadline import deadline_of

ANSWERING_SECONDS = 2.0
"""What an answer takes to be written, charged and sent, with room to spare."""

T = TypeVar("T")


@dataclass(frozen=True)
class TimeLimit:
    """The ``seconds`` a request may take from its arrival, and their end in `time.monotonic()`."""

    seconds: float
    deadline: float

    @classmethod
    def of(cls, scope: Scope, seconds: float) -> TimeLimit:
        return cls(seconds, deadline_of(scope, seconds))

    @property
    def arrived(self) -> float:
        return self.deadline - self.seconds

    @property
    def remaining(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    @property
    def made_by(self) -> float:
        """Return when several images have to be made, so that those that are can be answered."""
        return self.deadline - self._to_answer

    @property
    def answer_by(self) -> float:
        """Return when to answer with what is written, where some of what was asked for is not."""
        return self.deadline - self._to_answer / 2

    @property
    def _to_answer(self) -> float:
        return min(ANSWERING_SECONDS, self.seconds / 4)

    async def apply(self, work: Awaitable[T]) -> T:
        """Return what ``work`` returns. Raises DeadlineExceeded, and cancels it, at its end."""
        try:
            async with asyncio.timeout(self.remaining) as timeout:
                return await work
        except TimeoutError:
            if timeout.expired():
                raise DeadlineExceeded from None
            raise


async def within(
    request: Request,
    limit: TimeLimit,
    work: Coroutine[Any, Any, T],
    undo: Callable[[asyncio.Future[T]], object] = lambda _: None,
) -> T:
    """Return what ``work`` returns, or cancel it: at the deadline, or when the client leaves.

    Call after the body has been read: what comes then says that the client has left. ``undo`` gets
    the ended work if what it returned could not be returned. Raises DeadlineExceeded or
    ClientDisconnect.
    """
    working = asyncio.ensure_future(limit.apply(work))
    gone = asyncio.ensure_future(_client_gone(request))
    try:
        try:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                gone.result()
                raise ClientDisconnect
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)
    except BaseException:
        working.add_done_callback(undo)
        raise
    return working.result()


async def outcomes_of(
    work: Sequence[Coroutine[Any, Any, T]],
    limit: TimeLimit | None,
    withdraw: Callable[[], object],
) -> list[T | Exception]:
    """Return what each of ``work`` returns or raises.

    Of several those that are late end, after ``withdraw``, while there is time to answer with the
    others: in DeadlineExceeded. Where none has come, the first is waited for.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    seconds = None
    if limit is not None and len(tasks) > 1:
        seconds = max(0.0, limit.answer_by - time.monotonic())
    try:
        ended, late = await asyncio.wait(tasks, timeout=seconds)
        while late and all(one.exception() for one in ended):
            more, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
            ended |= more
        if late:
            withdraw()
        return [DeadlineExceeded() if one in late else _outcome(one) for one in tasks]
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _outcome(ended: asyncio.Task[T]) -> T | Exception:
    error = ended.exception()
    if error is None:
        return ended.result()
    if isinstance(error, Exception):
        return error
    raise error


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
