"""The engines of this machine's devices, each in a process of its own behind the one server.

`start_on_devices` is a `server.engine_service.ModelStarter`. The processes speak over pipes alone:
no port is opened. One that ends, or says nothing for long, is started anew.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import Future

from pipelines.request import Pixels
from server.engine_service import LoadedModel, StartError
from server.img2img.moderation import SafetyPolicy
from server.replicas.balance import Balance
from server.replicas.child import LOAD_MODEL, Job, Score, Watch
from server.replicas.devices import Devices, devices_of, replica_settings
from server.replicas.engine_process import END_SECONDS, EngineProcess, ProcessStream
from server.replicas.events import Call, Facts
from server.replicas.remote_engine import RemoteEngine, work_of
from server.settings import Settings

logger = logging.getLogger(__name__)

SILENT_SECONDS = 30.0
"""Without a word for so long, a process is killed and started anew."""
_RESTART_SECONDS = (0.0, 1.0, 5.0, 30.0)
"""Before each new start of a process that has ended; after one of `_LASTING_SECONDS` anew."""
_LASTING_SECONDS = 60.0
_LEAST_START_SECONDS = 60.0
_SLOW_STARTS = 5.0
"""A new start gets so many times what the slowest took that has gone well here, and no less than
`_LEAST_START_SECONDS`."""
SCORE_SECONDS = 125.0


class ProcessReplicas:
    """The processes of `jobs`, kept running. Its own thread runs the loop that talks to them.

    A start gets ``start_timeout`` seconds.
    """

    def __init__(self, jobs: list[Job], patience: float, start_timeout: float) -> None:
        self.loop = asyncio.new_event_loop()
        self._jobs = jobs
        self._start_timeout = start_timeout
        self._slowest: float | None = None  # of the starts that have gone well
        self._balance = Balance(patience=patience)
        self._processes: dict[str, EngineProcess] = {}
        self._first: Future[Facts] = Future()
        self._failed: set[str] = set()  # those whose start has failed at least once
        self._keeping: list[asyncio.Task[None]] = []
        self._lock = threading.Lock()  # of the next
        self._leaving = False
        self._thread = threading.Thread(target=self._run, name="img2img-replicas", daemon=True)

    def open(self) -> Facts:
        """Start the processes; return once one can serve.

        Raises StartError once the start of each has failed.
        """
        # Before multiprocessing's own, which waits for the processes without a limit.
        atexit.register(self._kill)
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
        # By that name there may be another one by now, which does not have the call.
        if process is not None and ident in process.calls:
            process.send(Watch(ident))

    def score(self, picture: Pixels) -> float:
        """Return the safety checker's score by one of them, by another where that one is lost.

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
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(3 * END_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(END_SECONDS)
        atexit.unregister(self._kill)

    def _kill(self) -> None:
        """End the processes at once and start no more: the server ends in another way."""
        with self._lock:
            self._leaving = True
            for task in self._keeping:  # first, as an end that is wanted is no error
                self.loop.call_soon_threadsafe(task.cancel)
            for process in self._processes.values():
                process.kill()

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
        """Start a process, and a new one whenever it has ended or could not be started."""
        failures = 0
        for count in itertools.count():
            served, unstarted = 0.0, None
            try:
                served = await self._run_one(name, job, again=count > 0)
            except Exception as error:  # whatever it is, nobody else starts that card's engine
                unstarted = error
            self._hear()
            failures = 0 if served > _LASTING_SECONDS else failures + 1
            wait = _RESTART_SECONDS[min(failures, len(_RESTART_SECONDS) - 1)]
            if unstarted is not None:
                self._has_failed(name, unstarted, wait)
            else:
                status = self._processes[name].process.exitcode
                ended = {"engine": name, "status": status, "again_in": wait}
                logger.error("engine ended", extra={"fields": ended})
            await asyncio.sleep(wait)

    async def _run_one(self, name: str, job: Job, *, again: bool) -> float:
        """Run a process until it is gone. Returns for how many seconds it could serve.

        Raises StartError, and what `EngineProcess` does.
        """
        began = time.monotonic()
        process = self._begin(name, job)
        try:
            facts = await process.started(self._patience_with_start(again=again))
            ready_at = time.monotonic()
            self._slowest = max(ready_at - began, self._slowest or 0.0)
            fields = {"engine": name, "pid": process.process.pid}
            logger.info("engine ready", extra={"fields": fields})
            if not self._first.done():
                self._first.set_result(facts)
            await self._until_silent(process)
            return time.monotonic() - ready_at
        finally:
            await process.end()  # the next one needs its card

    def _has_failed(self, name: str, error: Exception, wait: float) -> None:
        """Log why an engine was not started, and tell who waits for the first of them where each
        has failed."""
        unforeseen = None if isinstance(error, StartError | OSError) else error
        fields = {"engine": name, "reason": str(error), "again_in": wait}
        logger.error("engine not started", exc_info=unforeseen, extra={"fields": fields})
        self._failed.add(name)
        if not self._first.done() and len(self._failed) == len(self._jobs):
            self._first.set_exception(StartError(str(error)))

    def _begin(self, name: str, job: Job) -> EngineProcess:
        with self._lock:
            if self._leaving:
                raise asyncio.CancelledError
            self._processes.pop(name, None)  # it has ended, and there may be none in its place
            process = self._processes[name] = EngineProcess(name, job, self.loop)
        process.on_report = self._hear
        return process

    def _patience_with_start(self, *, again: bool) -> float:
        """Return the seconds that a start gets."""
        if not again or self._slowest is None:
            return self._start_timeout
        usual = max(_LEAST_START_SECONDS, _SLOW_STARTS * self._slowest)
        return min(self._start_timeout, usual)

    async def _until_silent(self, process: EngineProcess) -> None:
        """Return when it has ended; end it when it has said nothing for long."""
        while not process.ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.ended.wait(), 1.0)
            if process.name in self._balance.lost() and self._balance.usable:
                process.give_up_scores(f"{process.name} is lost")
            if (silent := time.monotonic() - process.heard) > SILENT_SECONDS:
                fields = {"engine": process.name, "silent": round(silent, 1)}
                logger.error("engine killed: it says nothing", extra={"fields": fields})
                process.kill()

    async def _end(self) -> None:
        for task in self._keeping:
            task.cancel()
        # Until they are all gone; one that the system itself cannot end is left behind.
        ending = [self.loop.create_task(one.end()) for one in self._processes.values()]
        if ending:
            await asyncio.wait([*ending, *self._keeping], timeout=2 * END_SECONDS)


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
    devices = devices_of(settings, 0 if settings.device == "cpu" else card_count())
    jobs = [Job(replica_settings(settings, devices), starter, card) for card in _cards(devices)]
    logger.info("devices", extra={"fields": {"engines": devices.count, "gpus": devices.gpus}})
    replicas = ProcessReplicas(jobs, settings.replica_patience, settings.start_timeout)
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
    """Return how many CUDA devices torch sees. Raises StartError where it cannot be asked.

    A process of its own asks: torch would stay in this one, which does without it.
    """
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        asked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise StartError(f"IMG2IMG_DEVICES: torch cannot count the CUDA devices: {error}") from None
    return int(asked.stdout)


def _cards(devices: Devices) -> list[str | None]:
    """Return what each process is to see: a card of those that this one sees, or no matter."""
    if devices.gpus == 0:
        return [None] * devices.count
    seen = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    return [seen[n] if n < len(seen) else str(n) for n in range(devices.count)]
