"""The engines of this machine's devices, each in a process of its own behind the one server.

`start_on_devices` is a `server.engine_service.ModelStarter`. The processes speak over pipes alone:
no port is opened. One that ends, or says nothing for long, is started anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Collection
from concurrent.futures import Future

from pipelines.request import Pixels
from server.engine_service import LoadedModel, StartError
from server.img2img.moderation import SafetyPolicy
from server.replicas.balance import Balance, Report
from server.replicas.child import (
    LOAD_MODEL,
    CannotStart,
    Job,
    Said,
    Score,
    Scored,
    Stop,
    Watch,
    Withdraw,
    main,
)
from server.replicas.devices import Devices, devices_of, replica_settings
from server.replicas.events import Call, Event, Facts
from server.replicas.remote_engine import NoReplica, RemoteEngine, ReplicaLost, work_of
from server.settings import Settings

logger = logging.getLogger(__name__)

SILENT_SECONDS = 30.0
"""Without a word for so long, a process is killed and started anew."""
_RESTART_SECONDS = (0.0, 1.0, 5.0, 30.0)
"""Before each new start of a process that has ended; after one of `_LASTING_SECONDS` anew."""
_LASTING_SECONDS = 60.0
SCORE_SECONDS = 125.0
_END_SECONDS = 5.0


class EngineProcess:
    """One process, as long as it lasts. Made on the loop that its messages are handled on."""

    def __init__(self, name: str, job: Job, loop: asyncio.AbstractEventLoop) -> None:
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
        self.process.start()
        other.close()  # so that its end is seen here
        for run in (self._read, self._write):
            threading.Thread(target=run, name=f"{name}-pipe", daemon=True).start()

    def send(self, message: object) -> None:
        """Have a message written; a process that is gone gets none."""
        self._outgoing.put(message)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def close(self) -> None:
        """Let it end by itself."""
        self._outgoing.put(Stop())

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
            self.process.kill()
        self.process.join(_END_SECONDS)
        self._pipe.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while not self.ended.is_set():
                self._pipe.send(self._outgoing.get())

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
            self.facts.set_result(message)
        elif isinstance(message, CannotStart):
            self.facts.set_exception(StartError(message.reason))

    def _end(self) -> None:
        self.ended.set()
        self.report = None
        if not self.facts.done():
            status = self.process.exitcode
            self.facts.set_exception(StartError(f"{self.name} ended with status {status}"))
        for events in self.calls.values():
            events.put_nowait(None)
        for waiting in self.scores.values():
            _settle(waiting, f"{self.name} has ended")
        self._outgoing.put(Stop())  # so that its writer ends too


def _settle(waiting: Future[float], score: float | str) -> None:
    if isinstance(score, str):
        waiting.set_exception(TimeoutError(score))
    else:
        waiting.set_result(score)


class ProcessReplicas:
    """The processes of `jobs`, kept running. Its own thread runs the loop that talks to them."""

    def __init__(self, jobs: list[Job], patience: float) -> None:
        self.loop = asyncio.new_event_loop()
        self._jobs = jobs
        self._balance = Balance(patience=patience)
        self._processes: dict[str, EngineProcess] = {}
        self._first: Future[Facts] = Future()
        self._failed: set[str] = set()  # those whose start has failed at least once
        self._keeping: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._run, name="img2img-replicas", daemon=True)

    def open(self) -> Facts:
        """Start the processes; return once one can serve.

        Raises StartError once the start of each has failed.
        """
        self._thread.start()
        return self._first.result()

    @property
    def balance(self) -> Balance:
        return self._balance

    def call(self, call: Call, seconds: float, avoid: Collection[str]) -> ProcessStream:
        self._hear()
        size, _, _ = work_of(call.request)
        names = self._balance.choose(call.ident, size, seconds, avoid)
        return ProcessStream(self._processes[names[0]] if names else None, call)

    def watch(self, ident: str) -> None:
        process = self._processes.get(self._balance.replica_of(ident) or "")
        if process is not None:
            process.send(Watch(ident))

    def score(self, picture: Pixels) -> float:
        """Return the safety checker's score by one of them, by another where that one ends.

        Raises TimeoutError.
        """
        asked: list[str] = []
        while True:
            waiting: Future[float] = Future()
            self.loop.call_soon_threadsafe(self._ask_for_score, picture, waiting, asked)
            try:
                return waiting.result(SCORE_SECONDS)
            except TimeoutError:
                if not waiting.done() or len(asked) != 1:
                    raise

    def _ask_for_score(self, picture: Pixels, waiting: Future[float], asked: list[str]) -> None:
        self._hear()
        name = self._balance.idlest(asked)
        if name is None:
            waiting.set_exception(TimeoutError("no engine is running"))
            return
        asked.append(name)
        ident = uuid.uuid4().hex
        self._processes[name].scores[ident] = waiting
        self._processes[name].send(Score(ident, picture))

    def close(self) -> None:
        """End the processes, then the loop."""
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(2 * _END_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_END_SECONDS)

    # On the loop

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        for number, job in enumerate(self._jobs):
            self._keeping.append(self.loop.create_task(self._keep(f"engine-{number}", job)))
        self.loop.run_forever()
        self.loop.close()

    def _hear(self) -> None:
        processes = self._processes.items()
        self._balance.hear({n: p.report for n, p in processes if p.report is not None})

    async def _keep(self, name: str, job: Job) -> None:
        """Start a process, and a new one whenever it has ended."""
        failures = 0
        while True:
            ready_at: float | None = None
            process = EngineProcess(name, job, self.loop)
            process.on_report = self._hear
            self._processes[name] = process
            try:
                facts = await process.facts
            except StartError as error:
                self._failed.add(name)
                if not self._first.done() and len(self._failed) == len(self._jobs):
                    self._first.set_exception(error)
                logger.error(
                    "engine not started", extra={"fields": {"engine": name, "reason": error}}
                )
            else:
                ready_at = time.monotonic()
                fields = {"engine": name, "pid": process.process.pid}
                logger.info("engine ready", extra={"fields": fields})
                if not self._first.done():
                    self._first.set_result(facts)
                await self._until_silent(process)
            self._hear()
            lasted = ready_at is not None and time.monotonic() - ready_at > _LASTING_SECONDS
            failures = 0 if lasted else failures + 1
            wait = _RESTART_SECONDS[min(failures, len(_RESTART_SECONDS) - 1)]
            ended = {"engine": name, "status": process.process.exitcode, "again_in": wait}
            logger.error("engine ended", extra={"fields": ended})
            await asyncio.sleep(wait)

    async def _until_silent(self, process: EngineProcess) -> None:
        """Return when it has ended; end it when it has said nothing for long."""
        while not process.ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.ended.wait(), 1.0)
            if (silent := time.monotonic() - process.heard) > SILENT_SECONDS:
                fields = {"engine": process.name, "silent": round(silent, 1)}
                logger.error("engine killed: it says nothing", extra={"fields": fields})
                process.kill()

    async def _end(self) -> None:
        for task in self._keeping:
            task.cancel()
        for process in self._processes.values():
            process.close()
        ended = (process.ended.wait() for process in self._processes.values())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*ended), _END_SECONDS)
        for process in self._processes.values():
            process.kill()


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


class RemoteScorer:
    """The replicas' safety checker, as `server.img2img.moderation.Scorer`."""

    obstacle = None
    alive = True

    def __init__(self, score: Callable[[Pixels], float]) -> None:
        self.score = score


def start_on_devices(settings: Settings, starter: str = LOAD_MODEL) -> LoadedModel:
    """Start an engine for each device that the settings name, made by ``starter``.

    Raises StartError.
    """
    devices = devices_of(settings, card_count())
    jobs = [Job(replica_settings(settings, devices), starter, card) for card in _cards(devices)]
    logger.info("devices", extra={"fields": {"engines": devices.count, "gpus": devices.gpus}})
    replicas = ProcessReplicas(jobs, settings.replica_patience)
    try:
        facts = replicas.open()
    except StartError:
        replicas.close()
        raise
    engine = RemoteEngine(replicas, replicas.loop, facts.costs)
    return remote_model(settings, facts, engine, replicas.score)


def remote_model(
    settings: Settings, facts: Facts, engine: RemoteEngine, score: Callable[[Pixels], float]
) -> LoadedModel:
    """Return what replicas run, as the application knows it."""
    safety = None
    if settings.safety != "off":
        safety = SafetyPolicy(settings.safety, settings.safety_threshold, RemoteScorer(score))
    return LoadedModel(engine, facts.model, facts.device, facts.dtype, facts.clip, safety)


def card_count() -> int:
    """Return how many CUDA devices there are, without a context on any."""
    import torch

    return torch.cuda.device_count()


def _cards(devices: Devices) -> list[str | None]:
    """Return what each process is to see: a card of those that this one sees, or no matter."""
    if devices.gpus == 0:
        return [None] * devices.count
    seen = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    return [seen[n] if n < len(seen) else str(n) for n in range(devices.count)]
