"""Processes that decode pictures: few, reused, bounded, and ended when nobody waits for them.

The standard library's pools do not fit: concurrent.futures breaks as a whole when one worker dies,
multiprocessing's forget the job of a worker that is killed, and both start workers by running the
main module again. So these are plain subprocesses, each with a pipe in and a pipe out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.request import Pixels
from server.decoder_limits import KERNEL_LIMITS, LARGE_PIXELS, DecoderLimits
from server.decoder_messages import NotNow, read_message, write_message
from server.fair_turns import FairTurns
from server.fitting import ResizeMode
from server.images import PictureError

WORKER = "server.picture_worker"
"""The module that a worker runs."""

_CLOSED = "the server is shutting down"
_MEASURE_SECONDS = 0.05
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "PYTHONHOME")
"""Environment variables of a worker. The server's hold its keys."""

MayGo = Callable[[int], bool]
"""Whether a picture of that many pixels may be decoded now; called in a thread."""

logger = logging.getLogger(__name__)


class DecodersBusy(Exception):
    """No decoder will be free in time, or they are shut down."""


class DecodeTimeout(Exception):
    """The deadline passed before the picture was decoded."""


class _Ended(Exception):
    """The worker was ended for a reason that its job does not answer for."""


@dataclass(frozen=True)
class Fit:
    """The size to make of a picture, as `server.images.prepare_picture` takes it."""

    width: int | None
    height: int | None
    mode: ResizeMode
    auto_sizes: Sequence[tuple[int, int]] = ()


class _Worker:
    """One process. One job at a time, from any thread."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[1])
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(search)
        # Threads and heaps of their own take address space that no picture needs.
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment["MALLOC_ARENA_MAX"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._ended_for: str | None = None

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._ended_for is None and self.process.poll() is None

    def run(
        self, data: bytes | bytearray, fit: Fit | None, limits: DecoderLimits, may_go: MayGo
    ) -> Pixels | None:
        """Return the pixels, or None without a fit.

        Raises PictureError, NotNow if `may_go(pixels)` is false, or _Ended if the worker was ended
        from outside.
        """
        header: dict[str, Any] = {"limits": asdict(limits)}
        if fit is not None:
            header |= asdict(fit)
        assert self.process.stdin is not None and self.process.stdout is not None
        pixels = 0
        try:
            with contextlib.nullcontext() if KERNEL_LIMITS else _Measured(self, limits) as measured:
                write_message(self.process.stdin, header, data)
                while (message := read_message(self.process.stdout)) is not None:
                    answer, payload = message
                    if "pixels" not in answer:
                        return self._result(answer, payload, limits, pixels)
                    pixels = answer["pixels"]
                    if measured is not None:
                        measured.pixels = pixels
                    go = may_go(pixels)
                    write_message(self.process.stdin, {"go": go})
                    if not go:
                        raise NotNow
        except OSError:
            pass  # The pipe broke: the worker has ended, which says more.
        raise self._death(limits, pixels)

    def _result(
        self, answer: dict[str, Any], payload: bytearray, limits: DecoderLimits, pixels: int
    ) -> Pixels | None:
        if answer["retire"]:
            self.end("it has grown")
        if "refused" in answer:
            raise PictureError(answer["refused"])
        if "over_memory" in answer:
            raise PictureError(limits.over_memory(pixels))
        if "failed" in answer:
            logger.error("a picture could not be decoded:\n%s", answer["failed"])
            raise PictureError("the picture could not be decoded")
        if answer["shape"] is None:
            return None
        return np.frombuffer(payload, np.uint8).reshape(answer["shape"])

    def _death(self, limits: DecoderLimits, pixels: int) -> Exception:
        status = self.process.wait()
        if self._ended_for == "cpu" or (os.name == "posix" and status == -signal.SIGPROF):
            return PictureError(limits.over_cpu(pixels))
        if self._ended_for == "memory":
            return PictureError(limits.over_memory(pixels))
        if self._ended_for == "nobody waits":
            return _Ended()
        logger.warning("a decoder ended with status %d", status)
        return PictureError("the picture could not be decoded: its decoder crashed")

    def end(self, reason: str) -> None:
        """Kill the process, for a reason that the running job is told."""
        self._ended_for = self._ended_for or reason
        self.process.kill()

    def reap(self) -> None:
        """Kill the process and leave nothing of it open."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()


class _Measured:
    """Measures a worker while it runs, and ends it above its limits."""

    def __init__(self, worker: _Worker, limits: DecoderLimits) -> None:
        import psutil

        self.pixels = 0
        self._worker = worker
        self._limits = limits
        self._process = psutil.Process(worker.process.pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Measured:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        with contextlib.suppress(psutil.Error):
            cpu, memory = self._use()
            while not self._done.wait(_MEASURE_SECONDS):
                cpu_now, memory_now = self._use()
                if cpu_now - cpu > self._limits.cpu_seconds(self.pixels):
                    self._worker.end("cpu")
                elif memory_now - memory > self._limits.memory_bytes(self.pixels):
                    self._worker.end("memory")

    def _use(self) -> tuple[float, int]:
        times = self._process.cpu_times()
        return times.user + times.system, self._process.memory_info().rss


class DecoderPool:
    """Decodes pictures in as many processes as there are places, with one to spare.

    Pictures above LARGE_PIXELS are decoded one at a time, since each may take gigabytes. Clients
    take turns. Bound to no event loop.
    """

    def __init__(self, places: int, limits: DecoderLimits, most_waiting: int = 64) -> None:
        self.limits = limits
        self._most_waiting = most_waiting
        self._places = places
        self._turns = FairTurns(places)
        self._large_turn = FairTurns(1)
        self._threads = ThreadPoolExecutor(places + 1, thread_name_prefix="decoders")
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
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
        fit: Fit | None,
        *,
        deadline: float | None = None,
        client: str = "",
    ) -> Pixels | None:
        """Return the upload as pixels of the size to make; None without a fit, if it is sound.

        ``deadline`` is in seconds of `time.monotonic()`. A cancelled call ends its worker.

        Raises PictureError, DecodeTimeout or DecodersBusy.
        """
        if self._turns.waiting + self._large_turn.waiting >= self._most_waiting:
            raise DecodersBusy("too many pictures wait to be decoded")
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

    async def _work(
        self, data: bytes | bytearray, fit: Fit | None, may_go: MayGo, deadline: float | None
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
        except _Ended:
            raise DecodersBusy(_CLOSED) from None
        finally:
            job.end()
            # Milliseconds, once the worker is dead; until then the place is not free.
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({future})
            future.exception()

    def _run(
        self, job: _Job, data: bytes | bytearray, fit: Fit | None, may_go: MayGo
    ) -> Pixels | None:
        worker = self._take()
        try:
            job.begin(worker)
            return worker.run(data, fit, self.limits, may_go)
        finally:
            job.finish()
            self._give_back(worker)

    def _take(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    break
                self._drop(worker)
            else:
                worker = self._new()
            if not self._idle and len(self._workers) <= self._places:
                self._idle.append(self._new())
            return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            if self._closed:
                return
            if worker.alive:
                self._idle.append(worker)
            else:
                self._drop(worker)
        self._add_spare()

    def _add_spare(self) -> None:
        """Start a worker where none is idle, so that the next picture waits for no interpreter."""
        with self._lock, contextlib.suppress(DecodersBusy):
            if not self._idle:
                self._idle.append(self._new())

    def _new(self) -> _Worker:
        if self._closed:
            raise DecodersBusy(_CLOSED)
        try:
            worker = _Worker()
        except OSError as error:
            logger.error("no decoder could be started: %s", error)
            raise DecodersBusy("no decoder could be started") from None
        self._workers.add(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        worker.reap()


class _Job:
    """What ties a job to its worker, so that ending the one ends the other and nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._ended = False

    def begin(self, worker: _Worker) -> None:
        with self._lock:
            if self._ended:
                raise _Ended
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
