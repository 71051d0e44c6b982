"""One engine in a process of its own, as a front calls it. No ray here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from pipelines.errors import (
    EngineDead,
    EngineDraining,
    EngineRefused,
    GenerationError,
)
from pipelines.request import GenerationRequest, Pixels, Progress
from server.engine_service import Handle, LoadedModel
from server.replicas.balance import Report, Size
from server.replicas.events import (
    Accepted,
    Call,
    Event,
    Facts,
    Failed,
    Finished,
    Lost,
    Stages,
    Waited,
)

logger = logging.getLogger(__name__)

WARM_SIZES = 32
"""Sizes that a replica names as warm, the last used."""
PROGRESS_SECONDS = 0.02
"""At least so long between two events of a call's progress."""


class EngineReplica:
    """Makes images by an engine that is started already. Its methods are called on one loop."""

    def __init__(self, model: LoadedModel, sizes: tuple[Size, ...] = ()) -> None:
        self._model = model
        self._engine = model.engine
        self._calls: set[str] = set()
        self._watched: dict[str, asyncio.Event] = {}
        self._warm: OrderedDict[Size, None] = OrderedDict.fromkeys(sizes)
        self._submitting = asyncio.Lock()
        # Not one of the loop's threads, which may all wait for the safety check.
        self._submitter = ThreadPoolExecutor(1, thread_name_prefix="submit")
        self._reports = 0

    def facts(self) -> Facts:
        """Return what it runs."""
        model = self._model
        costs = self._engine.costs_by_size()
        return Facts(model.name, model.device, model.dtype, model.clip, costs)

    def report(self) -> Report:
        """Return how it is now."""
        self._reports += 1
        now = self._engine.snapshot()
        return Report(
            self._reports,
            now.backlog_seconds,
            now.running,
            now.waiting,
            frozenset(self._calls),
            frozenset(self._warm),
            self._model.obstacle,
        )

    def check(self) -> None:
        """Raise RuntimeError where waiting does not help, and the replica is to be replaced."""
        if not self._model.alive:
            raise RuntimeError(self._model.obstacle or "the engine has stopped")

    async def generate(self, call: Call) -> AsyncGenerator[Event]:
        """Make an image: yield that it is taken, its progress, and how it ended.

        Closed early, it withdraws the request.
        """
        arrived = time.monotonic()
        ident, request = call.ident, call.request
        self._calls.add(ident)
        watched = self._watched[ident] = asyncio.Event()
        if call.eager:
            watched.set()
        handle: Handle | None = None
        try:
            handle, seconds = await self._submit(writable(request), call.waited, arrived)
            yield Accepted(seconds)
            async for progress in _paced(handle, watched):
                yield progress
            result = await handle.result()
            yield Finished(result, Stages.of(handle.timeline, arrived))
            self._used((request.width, request.height))
        except (EngineDraining, EngineDead) as error:
            # Refused because it stops, or ended for that: either way another can.
            yield Lost(str(error))
        except GenerationError as error:
            broken = not isinstance(error, EngineRefused) and not self._engine.alive
            yield Lost(str(error)) if broken else Failed(error)
        finally:
            self._calls.discard(ident)
            self._watched.pop(ident, None)
            if handle is not None and not handle.done:
                handle.cancel()

    def watch(self, ident: str) -> None:
        """Send all progress of a call from now on."""
        if (watched := self._watched.get(ident)) is not None:
            watched.set()

    async def score(self, picture: Pixels) -> float:
        """Return the safety checker's score. Raises TimeoutError where it hangs."""
        safety = self._model.safety
        if safety is None:
            raise RuntimeError("this replica has no safety checker")
        return await asyncio.to_thread(safety.scorer.score, picture)

    def close(self) -> None:
        """Stop the engine; what it still has fails."""
        self._engine.drain(0.0)

    async def _submit(
        self, request: GenerationRequest, waited: Waited, arrived: float
    ) -> tuple[Handle, float]:
        """Hand it to the engine, and return by how much that lengthened its backlog."""
        submit = partial(
            self._engine.submit,
            request,
            waited.timeout,
            arrived=arrived - waited.elapsed,
            taken=waited.taken,
        )
        async with self._submitting:  # so that the difference is this one's
            before = self._engine.snapshot().backlog_seconds
            submitted = asyncio.get_running_loop().run_in_executor(self._submitter, submit)
            try:
                handle = await asyncio.shield(submitted)
            except asyncio.CancelledError:
                submitted.add_done_callback(_withdraw)
                raise
            return handle, max(0.0, self._engine.snapshot().backlog_seconds - before)

    def _used(self, size: Size) -> None:
        self._warm[size] = None
        self._warm.move_to_end(size)
        while len(self._warm) > WARM_SIZES:
            self._warm.popitem(last=False)


def _withdraw(submitted: asyncio.Future[Handle]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def writable(request: GenerationRequest) -> GenerationRequest:
    """Return the request with arrays that may be written to: those that came by shared memory may
    not, of which torch warns."""
    copies = {
        name: array.copy()
        for name in ("image", "mask")
        if (array := getattr(request, name)) is not None and not array.flags.writeable
    }
    return replace(request, **copies) if copies else request


async def _paced(handle: Handle, watched: asyncio.Event) -> AsyncGenerator[Progress]:
    """Yield progress while somebody watches, at a bounded rate, until the request has ended.

    A preview goes with the first of it alone: it would travel with every step.
    """
    ended = asyncio.ensure_future(_ended(handle))
    watching = asyncio.ensure_future(watched.wait())
    try:
        await asyncio.wait((ended, watching), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return
        last, sent = 0.0, None
        updates = handle.progress()
        async for progress in updates:
            now, preview = time.monotonic(), progress.preview
            if preview is not sent:
                last, sent = now, preview
                yield progress
            elif now - last >= PROGRESS_SECONDS:
                last = now
                yield replace(progress, preview=None)
    finally:
        for task in (ended, watching):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _ended(handle: Handle) -> None:
    with contextlib.suppress(GenerationError):
        await handle.result()
