"""Threads for work on images and on texts, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


async def begin_in_thread(
    work: Callable[[], T], places: anyio.CapacityLimiter
) -> asyncio.Future[T]:
    """Begin work in a thread once one of ``places`` is free, and return what it will return.

    Who waits for a place may leave; the place is taken until the thread has ended.
    """
    place = object()
    await places.acquire_on_behalf_of(place)
    one = anyio.CapacityLimiter(1)
    thread = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=one))

    def ended(_: object) -> None:
        places.release_on_behalf_of(place)
        if not thread.cancelled():
            thread.exception()  # that nobody may be left to hear of

    thread.add_done_callback(ended)
    return thread


async def in_text_thread(work: Callable[[], T]) -> T:
    """Do what reads texts off the event loop, and not behind images, which take far longer."""
    return await anyio.to_thread.run_sync(work)
