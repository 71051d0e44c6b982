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
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.bundle import ModelBundle
from models.device import make_current
from pipelines.cache import CacheCounts
from pipelines.engine.calibration import guessed_costs, measure_costs
from pipelines.engine.config import EngineConfig
from pipelines.engine.device_timer import Elapsed, make_timer
from pipelines.engine.handle import GenerationHandle
from pipelines.engine.job import Job, StepCounts, program_of
from pipelines.engine.preparer import Preparer
from pipelines.engine.watch import Watch
from pipelines.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineDead,
    EngineDraining,
    EngineRefused,
    EngineStalled,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    RequestTooLong,
    as_failure,
)
from pipelines.prompt.encoder import PromptChunks
from pipelines.request import ClipGuidancePreset, GenerationRequest, GenerationResult, Progress
from pipelines.samplers.programs import evaluation_count
from pipelines.scheduler.batching import GroupKey, guidance_rows
from pipelines.scheduler.cost_model import CostTable
from pipelines.scheduler.scheduler import Scheduler
from pipelines.scheduler.work import Decode, Encode, Refusal, Step, Task, TooLong, Work

__all__ = ["Engine", "EngineConfig"]

logger = logging.getLogger(__name__)

_IDLE_WAIT = 0.25
"""Seconds between looks at the flags while there is no work."""
_END_SECONDS = 1.0
"""What a thread gets to end after draining, beyond what its unit should still take."""


@dataclass(frozen=True)
class _Launched:
    """A unit of work that may still be running; whether its time ``teaches`` the cost table.

    ``text_chunks`` were encoded in it.
    """

    work: Work
    elapsed: Elapsed
    teaches: bool
    text_chunks: int


class Engine:
    """Makes pictures. Thread-safe from the outside; the device belongs to its own thread.

    ``costs`` says what work costs; without it the engine measures at warm-up.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        config: EngineConfig | None = None,
        costs: CostTable | None = None,
    ) -> None:
        self.bundle = bundle
        self.config = config or EngineConfig()
        self._runner = self.config.fast.runner(
            bundle, self.config.step_buckets, self.config.max_running_requests
        )
        self._timer = make_timer(bundle.device)
        self._launched: _Launched | None = None
        self._measures = costs is None and self.config.warm_up
        policy = self.config.policy
        if bundle.vae_tile_above is not None:  # memory is short: one picture at a time
            policy = replace(policy, shared_decodes=())
        self._policy = policy
        self._scheduler = Scheduler(costs or guessed_costs(), policy)
        self._jobs: dict[int, Job] = {}  # by ident: all that wait or run
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._watch = Watch("the engine's unit of work", self.config.patience)
        self._prepare_watch = Watch("the preparation of a request", self.config.patience)
        self._preparer = Preparer(bundle, self._prepare_watch, self._prepared)
        self._lock = threading.Lock()  # of the scheduler and the jobs
        self._idents = itertools.count()
        self._thread: threading.Thread | None = None
        self._measured = threading.Event()
        self._ready = threading.Event()
        self._draining = threading.Event()
        self._stop = threading.Event()
        self._dead = False
        self._ended = False  # with the lock: no job that comes now would be failed or done

    # From any thread

    def start(self) -> None:
        """Start the thread and warm up; returns when the engine is ready. Raises EngineDead."""
        self._thread = threading.Thread(target=self._main, name="img2img-engine", daemon=True)
        self._thread.start()
        self._preparer.start()
        self._measured.wait()
        if self.config.warm_up:
            self._warm_up()
        self._ready.set()

    @property
    def ready(self) -> bool:
        """Warm, alive, taking requests and getting on with them."""
        taking = self._ready.is_set() and self.alive and not self._draining.is_set()
        return taking and self.obstacle is None

    @property
    def alive(self) -> bool:
        """Return whether its thread runs, and is not in something that will never end."""
        running = not self._dead and self._thread is not None and self._thread.is_alive()
        return running and not (self._watch.lost or self._prepare_watch.lost)

    @property
    def obstacle(self) -> str | None:
        """Say what hangs, or None. It may come back by itself, and then this is None again."""
        return self._watch.hang or self._prepare_watch.hang

    @property
    def backlog(self) -> int:
        """Requests that wait or run."""
        with self._lock:
            return len(self._jobs)

    @property
    def steps(self) -> StepCounts:
        return self._runner.steps

    @property
    def cache_counts(self) -> dict[str, CacheCounts]:
        """Hits and misses of the prompt and the picture cache."""
        return self._runner.cache_counts

    @property
    def costs(self) -> CostTable:
        """The cost of work on this device, as far as is known by now."""
        return self._scheduler.table

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
    ) -> GenerationHandle:
        """Take a request in, in the milliseconds that reading its texts takes.

        Call it off an event loop.

        ``timeout`` is in seconds from ``arrived``, a `time.monotonic()`: now if left out. Raises
        RequestTooLong (it alone takes longer than that), EngineBusy (the queue is full, or it could
        not be done in time), EngineStalled, EngineDraining or EngineDead.
        """
        self._check_state()
        handle = GenerationHandle(request)
        if request.image_strength >= 1.0:
            # Nothing is to be denoised: the answer is the fitted picture itself.
            handle.succeed(GenerationResult(request.image, request.seed))
            return handle
        now = time.monotonic()
        deadline = None if timeout is None else (now if arrived is None else arrived) + timeout
        key, texts = self._key(request)
        job = Job(next(self._idents), handle, key, texts, now)
        task = Task(
            job.ident,
            job.key,
            guidance_rows(request.cfg_scale),
            evaluation_count(request.sampler, request.steps, request.image_strength),
            arrived=now,
            deadline=deadline,
            prepared=False,
            guidance=request.clip_guidance,
            allowed=timeout,
            text_chunks=texts.total,
        )
        with self._lock:
            if self._ended:
                # Between the checks above and here: nobody would ever look at it.
                raise EngineDead("the engine is not running", retry_after=30.0)
            refusal = self._scheduler.offer(task, now)
            if refusal is not None:
                raise _refused(refusal, request)
            self._jobs[job.ident] = job
        self._preparer.submit(job)
        return handle

    def _check_state(self) -> None:
        if self._draining.is_set():
            raise EngineDraining("the server is shutting down", retry_after=5.0)
        if not self.alive:
            raise EngineDead("the engine is not running", retry_after=30.0)
        if (obstacle := self.obstacle) is not None:
            with self._lock:
                backlog = self._scheduler.backlog_seconds()
            raise EngineStalled(obstacle, retry_after=max(5.0, backlog))

    def drain(self, grace: float = 30.0) -> None:
        """Refuse new work, finish what runs within ``grace`` seconds, fail the rest, stop.

        A unit that does not end then is left behind, in a thread that does not keep the process.
        """
        self._draining.set()
        give_up = time.monotonic() + grace
        while self.alive and self.backlog and time.monotonic() < give_up:
            time.sleep(0.02)
        self._stop.set()
        self._inbox.put(None)
        if self._thread is not None:
            patience = 0.0 if self.obstacle else self._watch.remaining
            self._thread.join(_END_SECONDS + min(60.0, patience))
        self._preparer.close(_END_SECONDS)
        self._fail_all(EngineDraining("the server is shutting down", retry_after=5.0))

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

    # On the worker that prepares

    def _prepared(self, job: Job, error: Exception | None) -> None:
        if error is not None:
            self._finish(job, as_failure(error))
            return
        with self._lock:
            self._scheduler.prepared(job.ident)
        self._inbox.put(job)

    # On the engine's thread

    def _main(self) -> None:
        try:
            make_current(self.bundle.device)
            with torch.inference_mode():
                if self.config.warm_up:
                    self.config.fast.warm_up(self._runner, self._policy)
                if self._measures:
                    self._measure()
                self._measured.set()
                work: Work | None = None
                while not self._stop.is_set():
                    if work is None:
                        with self._watch.unit(self._launched_seconds):
                            self._settle()
                    self._receive(block=work is None)
                    self._drop_lost()
                    with self._lock:
                        work = self._scheduler.plan(time.monotonic())
                    if work is not None:
                        with self._watch.unit(work.seconds + self._launched_seconds):
                            self._do(work)
        except BaseException:
            logger.critical("the engine's thread has died", exc_info=True)
            raise
        finally:
            if not self._stop.is_set():
                self._dead = True
                self._fail_all(GenerationFailed("the engine's thread has died"))
            self._measured.set()

    @property
    def _launched_seconds(self) -> float:
        return 0.0 if self._launched is None else self._launched.work.seconds

    def _measure(self) -> None:
        denoiser = self._runner.denoiser
        self._scheduler.table = measure_costs(self.bundle, denoiser, self.config.step_limits)

    def _receive(self, block: bool) -> None:
        """Hear of what has become ready; with nothing to do, wait for it a while."""
        try:
            while True:
                job = self._inbox.get(block, _IDLE_WAIT if block else None)
                block = False
                if job is not None:
                    self._publish_positions()
        except queue.Empty:
            return

    def _publish_positions(self) -> None:
        """Tell those that are not encoded yet how many are before them."""
        with self._lock:
            waiting = [self._jobs[ident] for ident in self._scheduler.waiting()]
        for position, job in enumerate(waiting, 1):
            if job.program is not None:
                job.handle.publish(Progress(0, len(job.program), position))

    def _drop_lost(self) -> None:
        """Let go of what was cancelled or has passed its deadline."""
        with self._lock:
            cancelled = [job for job in self._jobs.values() if job.handle.cancelled]
            overdue = [self._jobs[i] for i in self._scheduler.overdue(time.monotonic())]
        for job in cancelled:
            self._finish(job, GenerationCancelled("the request was withdrawn"))
        for job in overdue:
            self._finish(job, DeadlineExceeded("the request took longer than it may"))

    def _do(self, work: Work) -> None:
        """Launch a unit of work and account for it, as soon as its time is known."""
        started = time.monotonic()
        self._timer.start()
        undisturbed, last = True, False
        if isinstance(work, Step):
            undisturbed = self._step([self._jobs[ident] for ident in work.idents])
        elif isinstance(work, Encode):
            last = self._encode(self._jobs[work.ident], work, started)
        else:
            last = self._decode([self._jobs[ident] for ident in work.idents], work.parts)
        # What was cached, failed or was tried again says nothing of what such a unit costs.
        early = not isinstance(work, Step) and last and work.part + 1 < work.parts
        done = self._runner.done
        teaches = undisturbed and not early and done.ordinary
        launched = _Launched(work, self._timer.stop(), teaches, done.text_chunks)
        with self._lock:
            self._scheduler.complete(work, last=last)
        self._settle()
        self._launched = launched
        if not self._timer.runs_ahead:
            self._settle()

    def _settle(self) -> None:
        """Account for the unit that was launched last, if that is not done yet; wait for its end.

        What a card does is settled when the next unit is launched: the card never waits.
        """
        launched, self._launched = self._launched, None
        if launched is None:
            return
        work, seconds = launched.work, launched.elapsed()
        if launched.teaches:
            with self._lock:
                self._scheduler.learn(work, seconds, launched.text_chunks)
        stage = {Step: "denoise", Encode: "prepare", Decode: "decode"}[type(work)]
        for ident in (work.ident,) if isinstance(work, Encode) else work.idents:
            if ident in self._jobs:
                self._report(self._jobs[ident], stage, seconds)

    def _report(self, job: Job, stage: str, seconds: float) -> None:
        job.spend(stage, seconds)
        if stage == "denoise":
            job.handle.publish(Progress(job.done, len(program_of(job)), preview=job.preview))
        elif job.decoded is not None:
            try:
                image = job.decoded.wait()
            except Exception as error:
                logger.exception("request %s could not be decoded", job.request.request_id)
                self._finish(job, as_failure(error))
            else:
                result = GenerationResult(image, job.request.seed, job.done, job.timings)
                self._finish(job, result)

    def _encode(self, job: Job, work: Encode, started: float) -> bool:
        """Return whether the job is encoded."""
        if work.part == 0:
            job.timings["queued"] = started - job.arrived
            job.handle.publish(Progress(0, len(program_of(job))))
        try:
            return self._runner.encode(job, work.parts)
        except Exception as error:
            logger.exception("request %s could not be encoded", job.request.request_id)
            self._finish(job, as_failure(error))
            return False

    def _step(self, members: Sequence[Job]) -> bool:
        """Run a step for ``members``; whether it went well at once.

        A step that fails is run again in halves, down to the one request that makes it fail. After
        an out-of-memory error its key's steps stay at half the rows as long as its crowd lasts.
        """
        try:
            self._runner.step(members)
            return True
        except Exception as error:
            if len(members) == 1:
                logger.exception("request %s failed in a step", members[0].request.request_id)
                self._finish(members[0], as_failure(error))
                return False
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        # Outside the handler: there the error would hold what the failed forward had allocated.
        if out_of_memory:
            rows = sum(guidance_rows(job.request.cfg_scale) for job in members)
            logger.warning("out of memory with %d rows: halved", rows)
            with self._lock:
                self._scheduler.cap_rows(members[0].key, rows // 2)
        middle = len(members) // 2
        self._step(members[:middle])
        self._step(members[middle:])
        return False

    def _decode(self, jobs: Sequence[Job], parts: int) -> bool:
        """Return whether the pictures of ``jobs`` are on their way.

        A shared decode that fails is run again one by one, so that only its cause fails.
        """
        try:
            return self._runner.decode(jobs, parts)
        except Exception as error:
            if len(jobs) == 1:
                logger.exception("request %s could not be decoded", jobs[0].request.request_id)
                self._finish(jobs[0], as_failure(error))
                return False
        for job in jobs:
            self._decode([job], parts)
        return True

    def _finish(self, job: Job, outcome: GenerationResult | GenerationError) -> None:
        """Take a job out of wherever it is and tell its handle."""
        with self._lock:
            self._scheduler.remove(job.ident)
            self._jobs.pop(job.ident, None)
        self._runner.release(job)
        if isinstance(outcome, GenerationResult):
            job.handle.succeed(outcome)
        else:
            job.handle.fail(outcome)

    def _fail_all(self, error: GenerationError) -> None:
        with self._lock:
            self._ended = True
            jobs, self._jobs = list(self._jobs.values()), {}
        for job in jobs:
            job.handle.fail(error)


def _refused(refusal: Refusal | TooLong, request: GenerationRequest) -> EngineRefused:
    if isinstance(refusal, Refusal):
        return EngineBusy(refusal.reason, retry_after=max(1, math.ceil(refusal.retry_after)))
    what = f"{request.width} x {request.height} at {request.steps} steps"
    if request.clip_guidance is not ClipGuidancePreset.NONE:
        what += f" with clip_guidance_preset {request.clip_guidance}"
    return RequestTooLong(what, refusal.seconds, refusal.allowed)
