"""The engine: one thread owns the device and does the units of work that the policy names.

A request's life: `Engine.submit` -> the scheduler takes it or refuses -> a worker draws its noise
and compiles its sampler table -> encoded (prompt and picture in, a place in a pool taken) -> steps
until its program is used up -> decoded -> its handle has the picture. Between any two units
requests join, leave, expire and report progress.
"""

from __future__ import annotations

import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from models.bundle import ModelBundle
from models.device import make_current
from models.device_usage import device_usage
from pipelines.engine.accounting import Accounting, Outcome, Unit
from pipelines.engine.calibration import guessed_costs, measure_costs
from pipelines.engine.config import EngineConfig
from pipelines.engine.device_timer import DeviceTimer, make_timer
from pipelines.engine.model_runner import ModelRunner, StepCounts
from pipelines.engine.policy import make_policy
from pipelines.engine.preparer import Prepared, Preparer
from pipelines.engine.refusal import refused
from pipelines.engine.statistics import EngineSnapshot, EngineStatistics
from pipelines.engine.vitals import Vitals
from pipelines.engine.warmup import make_runner, warm_up
from pipelines.engine.watch import Patience
from pipelines.errors import (
    EngineDead,
    EngineDraining,
    GenerationError,
    GenerationFailed,
    as_failure,
)
from pipelines.handle import GenerationHandle
from pipelines.prompt.encoder import PromptChunks
from pipelines.request import GenerationRequest, GenerationResult
from pipelines.samplers.programs import evaluation_count
from pipelines.scheduler.batching import GroupKey, guidance_rows
from pipelines.scheduler.cost_model import CostTable, SizeCost
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.scheduler import Scheduler
from pipelines.scheduler.work import Encode, Work

__all__ = ["Engine", "EngineConfig"]

logger = logging.getLogger(__name__)

_IDLE_WAIT = 0.25
"""Seconds between looks at the flags while there is no work."""
_TELL_SECONDS = 0.5
"""Between two times that those who wait are told of their place, unless another has come: with 64
of them it takes half a millisecond."""
_END_SECONDS = 1.0
"""What a thread gets to end after draining, beyond what its unit should still take."""


class Engine:
    """Makes pictures. Thread-safe from the outside; the device belongs to its own thread.

    ``costs`` says what work costs; without it the engine measures at warm-up. ``runner`` and
    ``timer`` stand in for those that ``config`` and the bundle's device ask for.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        config: EngineConfig | None = None,
        costs: CostTable | None = None,
        *,
        runner: ModelRunner | None = None,
        timer: DeviceTimer | None = None,
    ) -> None:
        self.bundle = bundle
        self.config = config or EngineConfig()
        self._policy = make_policy(self.config, bundle)
        self._runner = runner or make_runner(bundle, self.config, self._policy.limits.buckets)
        self._timer = timer or make_timer(bundle.device)
        self._measures = costs is None and self.config.warm_up
        self._scheduler = Scheduler(costs or guessed_costs(), self._policy)
        self._inbox: queue.SimpleQueue[tuple[RequestState, Prepared | Exception] | None]
        self._inbox = queue.SimpleQueue()
        self._vitals = Vitals(
            Patience(self.config.hang_seconds, lost_seconds=self.config.lost_seconds)
        )
        self._preparer = Preparer(bundle, self._vitals.preparation, self._hand_over)
        self._lock = threading.Lock()  # of the scheduler
        self._accounting = Accounting(self._scheduler, self._lock, self._runner)
        self._idents = itertools.count()
        self.statistics = EngineStatistics()  # of the engine's thread
        self._measured = threading.Event()
        self._stop = threading.Event()
        self._told, self._tell_at = -math.inf, math.inf  # those that wait; of the engine's thread
        self._newcomers = False
        self._ended = False  # with the lock: no request that comes now would be failed or done

    # From any thread

    def start(self) -> None:
        """Start the thread and warm up; returns when the engine is ready. Raises EngineDead."""
        thread = threading.Thread(target=self._main, name="img2img-engine", daemon=True)
        self._vitals.thread = thread
        thread.start()
        self._preparer.start()
        self._measured.wait()
        if self.config.warm_up:
            self._warm_up()
            self.statistics = EngineStatistics()  # of users' requests alone
            for counts in self._runner.cache_counts.values():
                counts.hits = counts.misses = 0
        self._vitals.warm.set()

    @property
    def ready(self) -> bool:
        """Warm, alive, taking requests and getting on with them."""
        return self._vitals.ready

    @property
    def alive(self) -> bool:
        """Return whether its thread runs, and is not in something that will never end."""
        return self._vitals.alive

    @property
    def obstacle(self) -> str | None:
        """Say what hangs, or None. It may come back by itself, and then this is None again."""
        return self._vitals.obstacle

    @property
    def backlog(self) -> int:
        """Requests that wait or run."""
        with self._lock:
            return len(self._scheduler)

    def _backlog_seconds(self) -> float:
        with self._lock:
            return self._scheduler.backlog_seconds()

    @property
    def steps(self) -> StepCounts:
        return self._runner.steps

    def snapshot(self) -> EngineSnapshot:
        """Return what it does now and did so far. From any thread; never waits for the device."""
        with self._lock:
            waiting = len(self._scheduler.waiting())
            running = len(self._scheduler) - waiting
            backlog = self._scheduler.backlog_seconds()
        return EngineSnapshot(
            running,
            waiting,
            backlog,
            self.statistics,
            self._runner.cache_counts,
            self._runner.graph_counts,
            partial(device_usage, self.bundle.device),
        )

    def costs_by_size(self) -> Sequence[SizeCost]:
        """Return what requests of some sizes take alone, the smallest first. From any thread."""
        with self._lock:
            return self._scheduler.predictions.table.by_size(self._policy.limits.padded(2))

    @property
    def costs(self) -> CostTable:
        """The cost of work on this device, as far as is known by now."""
        return self._scheduler.predictions.table

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
        *,
        taken: bool = False,
    ) -> GenerationHandle:
        """Take a request in, in the milliseconds that reading its texts takes.

        Call it off an event loop.

        ``timeout`` is in seconds from ``arrived``, a `time.monotonic()`: now if left out. Raises
        RequestTooLong (it alone takes longer than that), EngineBusy (the queue is full, or it could
        not be done in time), EngineStalled, EngineDraining or EngineDead. One that another engine
        had ``taken`` is not refused for the sake of others.
        """
        self._vitals.check(self._backlog_seconds)
        handle = GenerationHandle(request)
        if request.strength >= 1.0:
            # Nothing is to be denoised: the answer is the fitted picture itself.
            handle.succeed(GenerationResult(request.image, request.seed))
            return handle
        now = time.monotonic()
        deadline = None if timeout is None else (now if arrived is None else arrived) + timeout
        key, texts = self._key(request)
        state = RequestState(
            next(self._idents),
            key,
            guidance_rows(request.cfg_scale),
            evaluation_count(request.sampler, request.steps, request.strength),
            arrived=now,
            deadline=deadline,
            prepared=False,
            guidance=request.clip_guidance,
            allowed=timeout,
            text_chunks=texts.total,
            handle=handle,
            taken=taken,
        )
        with self._lock:
            if self._ended:
                # Between the check above and here: nobody would ever look at it.
                raise EngineDead("the engine is not running", retry_after=30.0)
            refusal = self._scheduler.offer(state, now)
        if refusal is not None:
            raise refused(refusal, request)
        self._preparer.submit(state, texts)
        self._newcomers = True
        return handle

    def drain(self, grace: float = 30.0) -> None:
        """Refuse new work, finish what runs within ``grace`` seconds, fail the rest, stop.

        A unit that does not end then is left behind, in a thread that does not keep the process.
        """
        self._vitals.draining.set()
        give_up = time.monotonic() + grace
        while self.alive and self.backlog and time.monotonic() < give_up:
            time.sleep(0.02)
        self._stop.set()
        # Before the present unit ends: whoever stops the process may not wait for that.
        self._fail_all(EngineDraining("the server is shutting down", retry_after=5.0))
        self._inbox.put(None)
        if self._vitals.thread is not None:
            patience = 0.0 if self.obstacle else self._vitals.unit.remaining
            self._vitals.thread.join(_END_SECONDS + min(60.0, patience))
        self._preparer.close(_END_SECONDS)

    def _key(self, request: GenerationRequest) -> tuple[GroupKey, PromptChunks]:
        """The group that a request belongs to, and its texts, whose length is part of that."""
        height, width = self.bundle.latent_size(request.width, request.height)
        texts = self._runner.prompts.read(request.prompt, request.negative_prompt)
        tokens = self._runner.prompts.length(texts)
        return GroupKey(height, width, tokens, request.tile), texts

    def _warm_up(self) -> None:
        """One small picture through every stage, so that the first caller does not wait."""
        image = np.full((320, 320, 3), 127, dtype=np.uint8)
        request = GenerationRequest(image, "a picture", image_strength=0.9, steps=20, seed=1)
        self.submit(request).wait()

    def _hand_over(self, state: RequestState, prepared: Prepared | Exception) -> None:
        self._inbox.put((state, prepared))

    # On the engine's thread

    def _main(self) -> None:
        try:
            make_current(self.bundle.device)
            with torch.inference_mode():
                self._make_ready()
                self._loop()
        except BaseException:
            logger.critical("the engine's thread has died", exc_info=True)
            raise
        finally:
            if not self._stop.is_set():
                self._vitals.died = True
                self._fail_all(GenerationFailed("the engine's thread has died"))
            self._measured.set()

    def _make_ready(self) -> None:
        if self.config.warm_up:
            warm_up(self._runner, self.config, self._policy)
        if self._measures:
            table = measure_costs(self._runner, self._policy.limits)
            self._scheduler.predictions.table = table
        self._measured.set()

    def _loop(self) -> None:
        """Run units of work until the engine stops, the device one ahead of the host."""
        in_flight: Unit | None = None
        idle = False
        while not self._stop.is_set():
            self._receive(block=idle)
            self._tell_waiting()
            with self._lock:
                work = self._scheduler.plan(time.monotonic())
            expected = sum(unit.seconds for unit in (work, in_flight and in_flight.work) if unit)
            with self._vitals.unit.unit(expected):
                launched = self._launch(work)
                if self._timer.runs_ahead:
                    self._collect(in_flight)
                    in_flight = launched
                else:
                    self._collect(launched)
            idle = work is None

    def _receive(self, block: bool) -> None:
        """Hear of what has become ready; with nothing to do, wait for it a while."""
        try:
            while True:
                arrived = self._inbox.get(block, _IDLE_WAIT if block else None)
                block = False
                if arrived is not None:
                    self._enter(*arrived)
        except queue.Empty:
            return

    def _enter(self, state: RequestState, prepared: Prepared | Exception) -> None:
        """Plan for a request from now on."""
        if isinstance(prepared, Exception):
            state.failure = as_failure(prepared)
            return
        with self._lock:
            if state.ident not in self._scheduler or state.lost(time.monotonic()):
                return  # it has ended, or does so when this round is collected
            state.program = prepared.program
            self._runner.add(state, prepared)
            self._scheduler.prepared(state.ident)
        self._tell_at = -math.inf

    def _tell_waiting(self) -> None:
        """Tell those that wait how many are before them, if that may have changed."""
        now = time.monotonic()
        if self._newcomers:  # told before they are prepared, if that takes long
            self._newcomers, self._tell_at = False, min(self._tell_at, now + _TELL_SECONDS)
        if now < self._tell_at:
            return
        self._told, self._tell_at = now, math.inf
        with self._lock:
            waiting = self._scheduler.waiting()
            seconds = self._scheduler.seconds_to_pictures()
        for position, state in enumerate(waiting, 1):
            state.publish(seconds[state.ident], queue_position=position)

    def _queue_moves(self) -> None:
        self._tell_at = min(self._tell_at, self._told + _TELL_SECONDS)

    def _launch(self, work: Work | None) -> Unit | None:
        """Have the runner start a unit, and count it as far as the plan goes."""
        if work is None:
            return None
        if isinstance(work, Encode) and work.part == 0:
            self._begin(work.ident)
        self._timer.start()
        launched = self._runner.launch(work)
        elapsed = self._timer.stop()
        with self._lock:
            if launched.row_cap is not None:
                self._scheduler.cap_rows(work.key, launched.row_cap)
            finished = self._scheduler.advance(work, last=launched.last, failed=launched.failures)
        return Unit(work, launched, finished, elapsed)

    def _begin(self, ident: int) -> None:
        self._preparer.begun(ident)
        with self._lock:
            states = self._scheduler.present((ident,))
            seconds = self._scheduler.seconds_to_pictures()
        for state in states:
            now = time.monotonic()
            state.timings["queued"] = now - state.arrived
            state.timeline.extend("queue", state.arrived, now)
            state.publish(seconds[state.ident])
        self._queue_moves()

    def _collect(self, unit: Unit | None) -> None:
        """Wait for a unit's end and account for it; end the requests that end, here alone.

        What a card does is collected when the next unit is launched: the card never waits.
        """
        outcomes = {} if unit is None else self._accounting.outcomes(unit, self.statistics)
        now = time.monotonic()
        with self._lock:
            states = list(self._scheduler)
        for state in states:
            if (outcome := outcomes.get(state.ident) or state.lost(now)) is not None:
                with self._lock:
                    removed = self._scheduler.remove(state.ident)
                self._runner.release(state.ident)
                if removed:  # else `_fail_all` has ended it meanwhile
                    self._end(state, outcome)
                    self._queue_moves()

    def _end(self, state: RequestState, outcome: Outcome) -> None:
        if "queue" not in state.timeline.spans:
            state.timeline.extend("queue", state.arrived, time.monotonic())
        self.statistics.count_end(outcome, state.timeline)
        state.end(outcome)
        self._preparer.begun(state.ident)

    def _fail_all(self, error: GenerationError) -> None:
        """End what is left when the engine has ended, from whichever thread finds that."""
        with self._lock:
            self._ended = True
            states = list(self._scheduler)
            for state in states:
                self._scheduler.remove(state.ident)
        for state in states:
            self._end(state, error)
