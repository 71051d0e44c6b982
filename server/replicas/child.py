"""An engine in a process of its own on this machine: what that process runs.

It answers over a pipe until it is told to stop, or the pipe closes, which is when the server has
gone in whatever way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from pipelines.request import Pixels
from server.engine_service import ModelStarter, StartError
from server.observability.logs import configure_logging
from server.replicas.balance import Report
from server.replicas.events import Call, Event, Facts
from server.replicas.replica import EngineReplica
from server.settings import Settings

logger = logging.getLogger(__name__)

LOAD_MODEL = "server.engine_service:load_model"
NOT_FOR_IT = (signal.SIGINT, signal.SIGTERM)
"""Signals that an engine's process gets where all of its group do, as by a Ctrl-C. It leaves them
to the server, which lets what runs finish."""
REPORT_SECONDS = 0.1
CLOSE_SECONDS = 4.0
"""What an engine gets to stop, before the process ends all the same."""


@dataclass(frozen=True)
class Job:
    """What a process is to run: the settings, what makes the engine, the card it sees."""

    settings: dict[str, Any]
    starter: str = LOAD_MODEL
    card: str | None = None


# From the server, beside calls


@dataclass(frozen=True)
class Withdraw:
    """Make it no more."""

    ident: str


@dataclass(frozen=True)
class Watch:
    """Send all progress of it."""

    ident: str


@dataclass(frozen=True)
class Score:
    """Say what the safety checker finds in a picture."""

    ident: str
    picture: Pixels


@dataclass(frozen=True)
class Stop:
    """End."""


# To the server


@dataclass(frozen=True)
class CannotStart:
    """The engine cannot be started: the reason, for the operator."""

    reason: str


@dataclass(frozen=True)
class Said:
    """An event of a call; None is its end."""

    ident: str
    event: Event | None


@dataclass(frozen=True)
class Scored:
    """The score, or in words why there is none."""

    ident: str
    score: float | str


Answer = Facts | CannotStart | Report | Said | Scored


def starter_of(name: str) -> ModelStarter:
    """Return the function that ``module:function`` names."""
    module, _, function = name.partition(":")
    starter: ModelStarter = getattr(import_module(module), function)
    return starter


def main(pipe: Connection, job: Job) -> None:
    """Run an engine until the pipe closes. The process ends here, and never by its own way out:
    a thread that hangs, in a load that has failed or in the device's library, would keep it."""
    for number in NOT_FOR_IT:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":  # it was started with them blocked
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_IT)
    try:
        if job.card is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = job.card
        settings = Settings(**job.settings)
        configure_logging(settings.log_level, settings.log_format)
        child = _Child(pipe)
        replica = _start(pipe, job, settings)
        # Not `asyncio.run`, which ends by waiting for threads.
        asyncio.new_event_loop().run_until_complete(child.run(replica))
        os._exit(0)
    except Exception:
        logger.exception("the engine's process fails")
    finally:
        os._exit(1)


def _start(pipe: Connection, job: Job, settings: Settings) -> EngineReplica:
    """Load the engine and warm it up. Where that fails, say why and end the process."""
    try:
        model = starter_of(job.starter)(settings)
        model.engine.start()
    except Exception as error:
        if not isinstance(error, StartError):
            logger.exception("the engine could not be started")
        with contextlib.suppress(OSError):
            pipe.send(CannotStart(str(error) or repr(error)))
        os._exit(1)
    return EngineReplica(model, settings.capture_sizes_in_pixels)


class _Child:
    """Carries messages between the pipe and the replica.

    It listens from before there is a replica: a server that stops, or is gone, while the engine
    loads ends the process at once, whatever the load is at.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._outgoing: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._lock = threading.Lock()  # of the loop
        self._loop: asyncio.AbstractEventLoop | None = None
        threading.Thread(target=self._read, daemon=True).start()

    async def run(self, replica: EngineReplica) -> None:
        self._replica = replica
        with self._lock:
            self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._write, daemon=True).start()
        self._outgoing.put(replica.facts())
        while not self._closed.is_set():
            self._outgoing.put(replica.report())
            replica.check()  # ends the process, and another takes its place
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), REPORT_SECONDS)
        for task in self._calls.values():
            task.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(replica.close), CLOSE_SECONDS)

    def _read(self) -> None:
        try:
            while not isinstance(message := self._pipe.recv(), Stop):
                self._call_soon(self._take, message)
        except (EOFError, OSError):
            pass
        except Exception:
            logger.exception("what the server says cannot be read")
        if not self._call_soon(self._closed.set):
            os._exit(0)

    def _call_soon(self, what: Callable[..., None], *args: object) -> bool:
        """Have the loop call something, if there is one yet: an engine that has not reported has
        no calls that something else than the end could be about."""
        with self._lock:
            if self._loop is None:
                return False
            self._loop.call_soon_threadsafe(what, *args)
            return True

    def _write(self) -> None:
        try:
            while True:
                self._pipe.send(self._outgoing.get())
        except OSError:
            pass
        except Exception:
            logger.exception("what was to be said cannot be sent")
        self._call_soon(self._closed.set)

    def _take(self, message: object) -> None:
        if isinstance(message, Call):
            call = asyncio.ensure_future(self._generate(message))
            self._calls[message.ident] = call
            # Also of one that is cancelled before it begins.
            call.add_done_callback(partial(self._ended, message.ident))
        elif isinstance(message, Withdraw):
            if (running := self._calls.get(message.ident)) is not None:
                running.cancel()
        elif isinstance(message, Watch):
            self._replica.watch(message.ident)
        elif isinstance(message, Score):
            scoring = asyncio.ensure_future(self._score(message))
            self._others.add(scoring)
            scoring.add_done_callback(self._others.discard)

    async def _generate(self, call: Call) -> None:
        events = self._replica.generate(call)
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    self._outgoing.put(Said(call.ident, event))
        except Exception:
            logger.exception("request %s broke off", call.request.request_id)

    def _ended(self, ident: str, _: asyncio.Task[None]) -> None:
        del self._calls[ident]
        self._outgoing.put(Said(ident, None))

    async def _score(self, asked: Score) -> None:
        try:
            score: float | str = await self._replica.score(asked.picture)
        except Exception as error:
            logger.exception("the safety check failed")
            score = f"{type(error).__name__}: {error}"
        self._outgoing.put(Scored(asked.ident, score))
