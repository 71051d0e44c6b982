"""A pool of processes that decode pictures: few, reused, and ended when nobody waits for them.

The standard library's pools do not fit: concurrent.futures breaks as a whole when one worker dies,
multiprocessing's forget the job of a worker that is killed, and both start workers by running the
main module again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pipelines.request import Pixels
from server.errors import DecodersBusy, DecodeTimeout
from server.http.fair_turns import FairTurns
from server.images.workers.limits import LARGE_PIXELS, DecoderLimits
from server.images.workers.messages import NotNow
from server.images.workers.process import (
    MayGo,
    Wanted,
    Worker,
    WorkerEnded,
)

_CLOSED = "the server is shutting down"
logger = logging.getLogger(__name__)


class DecoderPool:
    """Decodes pictures in as many processes as there are places, with one to ``spare``.

    Pictures above LARGE_PIXELS are decoded one at a time, since each may take gigabytes. Clients
    take turns; while ``most_waiting`` wait, those with more than their share of them are refused.
    Bound to no event loop.
    """

    def __init__(
        self, places: int, limits: DecoderLimits, most_waiting: int = 64, *, spare: bool = True
    ) -> None:
        self.limits = limits
        self._most_waiting = most_waiting
        self._places = places
        self._spare = spare
        self._turns = FairTurns(places)
        self._large_turn = FairTurns(1)
        self._threads = ThreadPoolExecutor(places + 1, thread_name_prefix="decoders")
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._workers: set[Worker] = set()
        self._closed = False

    def start(self) -> None:
        """Start the first worker, without waiting for it."""
        self._threads.submit(self._add_spare)

    def close(self) -> None:
        """End all workers; jobs that run or wait fail."""
        with self._lock:
            self._closed = True
            workers = list(self._workers)
        for worker in workers:
            worker.end("nobody waits")
        self._threads.shutdown()
        for worker in workers:
            worker.reap()

    async def decode(
        self,
        data: bytes | bytearray,
        fit: Wanted,
        *,
        deadline: float | None = None,
        client: str = "",
    ) -> Pixels | None:
        """Return the upload's pixels as ``fit`` wants them; without one None, if it is sound.

        ``deadline`` is in seconds of `time.monotonic()`. A cancelled call ends its worker.

        Raises ImageError, DecodeTimeout or DecodersBusy.
        """
        self._check_room(client)
        has_large_turn = False

        def may_go(pixels: int) -> bool:
            nonlocal has_large_turn
            if pixels > LARGE_PIXELS and not has_large_turn:
                has_large_turn = self._large_turn.try_take(client)
                return has_large_turn
            return True

        try:
            while True:
                await _in_turn(self._turns, client, deadline)
                try:
                    return await self._work(data, fit, may_go, deadline)
                except NotNow:
                    pass
                finally:
                    self._turns.give_back(client)
                await _in_turn(self._large_turn, client, deadline)
                has_large_turn = True
        finally:
            if has_large_turn:
                self._large_turn.give_back(client)

    def _check_room(self, client: str) -> None:
        waiting = self._turns.waiting + self._large_turn.waiting
        share = self._most_waiting // (len(waiting) + 1)
        # Not first come, first served: the queue of one client must not shut out the others.
        if waiting.total() >= self._most_waiting and waiting[client] >= share:
            raise DecodersBusy("too many pictures wait to be decoded")

    async def _work(
        self, data: bytes | bytearray, fit: Wanted, may_go: MayGo, deadline: float | None
    ) -> Pixels | None:
        job = _Job()
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._threads, self._run, job, data, fit, may_go)
        except RuntimeError:  # the threads have been shut down
            raise DecodersBusy(_CLOSED) from None
        try:
            done, _ = await asyncio.wait({future}, timeout=_left(deadline))
            if not done:
                raise DecodeTimeout
            return future.result()
        except WorkerEnded:
            raise DecodersBusy(_CLOSED) from None
        finally:
            job.end()
            # Milliseconds, once the worker is dead; until then the place is not free.
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({future})
            future.exception()

    def _run(self, job: _Job, data: bytes | bytearray, fit: Wanted, may_go: MayGo) -> Pixels | None:
        worker = self._take()
        try:
            self._add_spare()
            job.begin(worker)
            return worker.run(data, fit, self.limits, may_go)
        finally:
            job.finish()
            self._give_back(worker)

    def _take(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    break
                self._drop(worker)
            else:
                worker = self._new()
            return worker

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            if self._closed:
                return
            if worker.alive:
                self._idle.append(worker)
            else:
                self._drop(worker)
        self._add_spare()

    def _add_spare(self) -> None:
        """Start a worker where none is idle, so that the next picture waits for no interpreter.

        One that cannot be started is no loss to whoever is served.
        """
        with self._lock, contextlib.suppress(DecodersBusy):
            if self._spare and not self._idle and len(self._workers) <= self._places:
                self._idle.append(self._new())

    def _new(self) -> Worker:
        if self._closed:
            raise DecodersBusy(_CLOSED)
        try:
            worker = Worker()
        except OSError as error:
            logger.error("no decoder could be started: %s", error)
            raise DecodersBusy("no decoder could be started") from None
        self._workers.add(worker)
        return worker

    def _drop(self, worker: Worker) -> None:
        self._workers.discard(worker)
        worker.reap()


class _Job:
    """The tie of a job to its worker: ending the one ends the other, and nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._ended = False

    def begin(self, worker: Worker) -> None:
        with self._lock:
            if self._ended:
                raise WorkerEnded
            self._worker = worker

    def finish(self) -> None:
        with self._lock:
            self._worker = None

    def end(self) -> None:
        with self._lock:
            self._ended = True
            if self._worker is not None:
                self._worker.end("nobody waits")


async def _in_turn(turns: FairTurns, client: str, deadline: float | None) -> None:
    """Wait for a place, which is then the caller's. Raises DecodeTimeout."""
    turn = turns.take(client)
    try:
        async with asyncio.timeout(_left(deadline)):
            await asyncio.wrap_future(turn)
    except BaseException as error:
        if not turn.cancel():
            turns.give_back(client)
        if isinstance(error, TimeoutError):
            raise DecodeTimeout from None
        raise


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
