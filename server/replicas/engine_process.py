"""One engine in a process of its own, as the server sees it, and a call of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import queue
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from multiprocessing import resource_tracker

from server.engine_service import StartError
from server.replicas.balance import Report
from server.replicas.child import NOT_FOR_IT, CannotStart, Job, Said, Scored, Stop, Withdraw, main
from server.replicas.events import Call, Event, Facts
from server.replicas.remote_engine import NoReplica, ReplicaLost

logger = logging.getLogger(__name__)

END_SECONDS = 5.0
"""What a process gets to end by itself."""


class EngineProcess:
    """One process, as long as it lasts. Made on the loop that its messages are handled on."""

    def __init__(self, name: str, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        """Raises OSError or RuntimeError, and leaves nothing, where there is no memory, descriptor
        or thread for it."""
        self.name = name
        self.report: Report | None = None
        self.heard = time.monotonic()
        self.facts: asyncio.Future[Facts] = loop.create_future()
        self.ended = asyncio.Event()
        self.calls: dict[str, asyncio.Queue[Event | None]] = {}
        self.scores: dict[str, Future[float]] = {}
        self.on_report: Callable[[], None] = lambda: None
        self._outgoing: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._loop = loop
        context = multiprocessing.get_context("spawn")  # a fork would inherit locks and CUDA
        self._pipe, other = context.Pipe()
        self.process = context.Process(target=main, args=(other, job), name=name, daemon=True)
        try:
            with _signals_blocked():
                self.process.start()
            for run in (self._write, self._read):  # the reader last: it has to see the end
                name_of_it = f"{name}-{run.__name__.strip('_')}"
                threading.Thread(target=run, name=name_of_it, daemon=True).start()
        except BaseException:
            self.kill()
            if self.process.pid is not None:
                self.process.join()
            self._pipe.close()
            self._end()
            raise
        finally:
            other.close()  # so that its end is seen here

    def send(self, message: object) -> None:
        """Have a message written; a process that is gone gets none."""
        self._outgoing.put(message)

    def kill(self) -> None:
        """End it at once."""
        if self.process.pid is not None:
            self.process.kill()

    def give_up_scores(self, reason: str) -> None:
        """Let who waits for a score hear that none comes."""
        while self.scores:
            _settle(self.scores.popitem()[1], reason)

    async def started(self, seconds: float) -> Facts:
        """Return what it runs, once it can serve. Raises StartError, in any case then."""
        # Not `wait_for`, which would cancel what is still to be told.
        await asyncio.wait((self.facts,), timeout=seconds)
        self._fail(f"{self.name} has not started within {seconds:g} s")
        return self.facts.result()

    async def end(self) -> None:
        """Let it end by itself, then by force. Returns once it is gone."""
        self.send(Stop())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), END_SECONDS)
        if not self.ended.is_set():
            self.kill()
            await self.ended.wait()

    def _read(self) -> None:
        try:
            while True:
                message = self._pipe.recv()
                self._loop.call_soon_threadsafe(self._take, message)
        except (EOFError, OSError):
            pass
        except Exception:
            # A message that cannot be read: what the process does is not known any more.
            logger.exception("%s says what cannot be read", self.name)
            self.kill()
        # What has let go of its pipe may still hold on to its card.
        self.process.join(END_SECONDS)
        self.kill()
        self.process.join()
        self._pipe.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end)

    def _write(self) -> None:
        try:
            while not self.ended.is_set():
                self._pipe.send(self._outgoing.get())
        except OSError:
            pass
        except Exception:
            # It waits for what it will never get, and would be given more, as the idlest of all.
            logger.exception("%s cannot be told what it is to do", self.name)
            self.kill()

    def _take(self, message: object) -> None:
        self.heard = time.monotonic()
        if isinstance(message, Report):
            self.report = message
            self.on_report()
        elif isinstance(message, Said):
            if (events := self.calls.get(message.ident)) is not None:
                events.put_nowait(message.event)
        elif isinstance(message, Scored):
            if (waiting := self.scores.pop(message.ident, None)) is not None:
                _settle(waiting, message.score)
        elif isinstance(message, Facts):
            if not self.facts.done():
                self.facts.set_result(message)
        elif isinstance(message, CannotStart):
            self._fail(message.reason)

    def _fail(self, reason: str) -> None:
        """Say why it has not started, where that is not known yet."""
        if not self.facts.done():
            self.facts.set_exception(StartError(reason))
            self.facts.exception()  # nobody has to ask for it

    def _end(self) -> None:
        self.ended.set()
        self.report = None
        self._fail(f"{self.name} ended with status {self.process.exitcode}")
        for events in self.calls.values():
            events.put_nowait(None)
        self.give_up_scores(f"{self.name} has ended")
        self._outgoing.put(Stop())  # so that its writer ends too


def _settle(waiting: Future[float], score: float | str) -> None:
    if isinstance(score, str):
        waiting.set_exception(TimeoutError(score))
    else:
        waiting.set_result(score)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Have what starts meanwhile hear no signal before it ignores them: a Ctrl-C would end it, with
    a traceback, while it imports."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # now, as it leaves them unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_IT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ProcessStream:
    """The events of one call on one process."""

    def __init__(self, process: EngineProcess | None, call: Call) -> None:
        self._process = process
        self._call = call
        self._ended = False

    async def __aiter__(self) -> AsyncGenerator[Event]:
        process, call = self._process, self._call
        if process is None:
            raise NoReplica("no engine is running")
        if process.ended.is_set():  # since it was chosen: nobody would tell this call any more
            raise ReplicaLost(f"{process.name} has ended")
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        process.calls[call.ident] = events
        process.send(call)
        while (event := await events.get()) is not None:
            yield event
        self._ended = True
        if process.ended.is_set():
            raise ReplicaLost(f"{process.name} ended with status {process.process.exitcode}")

    def cancel(self) -> None:
        if self._process is not None:
            self._process.calls.pop(self._call.ident, None)
            if not self._ended:
                self._process.send(Withdraw(self._call.ident))
