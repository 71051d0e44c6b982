"""The handle of a submitted request: its result, its progress, the way to withdraw it.

The engine's thread writes, any event loop (or none) reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future

from pipelines.request import GenerationRequest, GenerationResult, Progress
from pipelines.timeline import Timeline

_Listener = tuple[asyncio.AbstractEventLoop, asyncio.Event]


class GenerationHandle:
    """One submitted request."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.timeline = Timeline()
        self._future: Future[GenerationResult] = Future()
        # Running from the start: only `cancel` withdraws a request, never a cancelled awaiter.
        self._future.set_running_or_notify_cancel()
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._listeners: list[_Listener] = []

    # What the caller uses

    async def result(self) -> GenerationResult:
        """The picture. Raises DeadlineExceeded, GenerationCancelled or GenerationFailed."""
        return await asyncio.wrap_future(self._future)

    def wait(self, timeout: float | None = None) -> GenerationResult:
        """As `result`, for a caller without an event loop; ``timeout`` in seconds."""
        return self._future.result(timeout)

    async def progress(self) -> AsyncIterator[Progress]:
        """Every change of progress that there is time to see, until the request has ended."""
        event = asyncio.Event()
        listener = (asyncio.get_running_loop(), event)
        with self._lock:
            self._listeners.append(listener)
        seen: Progress | None = None
        try:
            while True:
                event.clear()
                ended, current = self._future.done(), self._progress
                if current is not None and current is not seen:
                    seen = current
                    yield current
                if ended:
                    return
                await event.wait()
        finally:
            with self._lock:
                self._listeners.remove(listener)

    @property
    def latest(self) -> Progress | None:
        """Return the last progress, None before the first."""
        return self._progress

    def cancel(self) -> None:
        """Withdraw the request; it leaves at the next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def done(self) -> bool:
        return self._future.done()

    # What the engine uses

    def publish(self, progress: Progress) -> None:
        """Tell the listeners how far the request is."""
        self._progress = progress
        self._notify()

    def succeed(self, result: GenerationResult) -> None:
        if not self._future.done():
            self._future.set_result(result)
        self._notify()

    def fail(self, error: BaseException) -> None:
        if not self._future.done():
            self._future.set_exception(error)
        self._notify()

    def _notify(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for loop, event in listeners:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(event.set)
