"""Waits for work no longer than the request's time and its client's patience allow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from pipelines.errors import DeadlineExceeded
from server.http.deadline import deadline_of

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


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
