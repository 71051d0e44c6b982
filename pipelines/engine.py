"""The engine: one thread owns the device and runs ticks.

A request's life: `Engine.submit` -> (a worker draws its noise and compiles its sampler table) ->
inbox -> waiting -> admitted (prompt and picture encoded, a place in a pool taken) -> ticks until
its table is used up -> decoded -> its handle has the picture. Between ticks requests join, leave,
expire and report progress.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from models.bundle import ModelBundle
from pipelines.batching import Candidate, GroupKey, TickLimits, guidance_rows, plan_tick
from pipelines.denoiser import Denoiser, LatentPool
from pipelines.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineDead,
    EngineDraining,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
)
from pipelines.handle import GenerationHandle
from pipelines.job import Job, TickCounts, evaluation_of, table_of
from pipelines.preview import LatentToRgb
from pipelines.prompt import PromptEncoder
from pipelines.request import GenerationRequest, GenerationResult, Pixels, Progress
from pipelines.samplers import make_table
from pipelines.schedules import NoiseSchedule
from pipelines.stages import PictureEncoder, RequestNoise, decode_latents, start_latents

logger = logging.getLogger(__name__)

_IDLE_WAIT = 0.25
"""Seconds between looks at the flags while there is no work."""


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine takes on.

    ``max_queue`` requests wait or run at most; ``max_batch`` run at a time. ``row_buckets`` are the
    numbers of U-Net rows that a tick is padded to; empty means none. ``exact`` runs every tick in
    one fixed bucket of ``exact_rows``, so that a picture's bytes do not depend on the crowd.
    """

    max_queue: int = 64
    max_batch: int = 16
    limits: TickLimits = field(default_factory=TickLimits)
    row_buckets: Sequence[int] = ()
    exact: bool = False
    exact_rows: int = 8
    warm_up: bool = True

    @property
    def tick_limits(self) -> TickLimits:
        """The limits in force: in the exact lane no tick is larger than its bucket."""
        if not self.exact:
            return self.limits
        return replace(self.limits, max_rows=min(self.limits.max_rows, self.exact_rows))

    @property
    def tick_buckets(self) -> Sequence[int]:
        return (self.exact_rows,) if self.exact else self.row_buckets


class Engine:
    """Makes pictures. Thread-safe from the outside; the device belongs to its own thread."""

    def __init__(self, bundle: ModelBundle, config: EngineConfig | None = None) -> None:
        self.bundle = bundle
        self.config = config or EngineConfig()
        self._noise_schedule = NoiseSchedule.from_config(bundle.scheduler_config)
        self._prompts = PromptEncoder(bundle)
        self._pictures = PictureEncoder(bundle)
        self._denoiser = Denoiser(bundle, self.config.tick_buckets)
        self._limits = self.config.tick_limits
        self._latent_to_rgb: LatentToRgb | None = None
        self.ticks = TickCounts()
        self._pools: dict[GroupKey, LatentPool] = {}
        self._turns: dict[GroupKey, int] = {}
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="img2img-prepare")
        self._lock = threading.Lock()
        self._open: set[Job] = set()
        self._idents = itertools.count()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._draining = threading.Event()
        self._stop = threading.Event()
        self._dead = False

    # From any thread

    def start(self) -> None:
        """Start the thread and warm up; returns when the engine is ready. Raises EngineDead."""
        self._thread = threading.Thread(target=self._main, name="img2img-engine", daemon=True)
        self._thread.start()
        if self.config.warm_up:
            self._warm_up()
        self._ready.set()

    @property
    def ready(self) -> bool:
        """Warm, alive and taking requests."""
        return self._ready.is_set() and self.alive and not self._draining.is_set()

    @property
    def alive(self) -> bool:
        return not self._dead and self._thread is not None and self._thread.is_alive()

    @property
    def backlog(self) -> int:
        """Requests that wait or run."""
        with self._lock:
            return len(self._open)

    def submit(self, request: GenerationRequest, timeout: float | None = None) -> GenerationHandle:
        """Take a request in; never blocks. ``timeout`` in seconds from now.

        Raises EngineBusy, EngineDraining or EngineDead.
        """
        if self._draining.is_set():
            raise EngineDraining("the server is shutting down", retry_after=5.0)
        if not self.alive:
            raise EngineDead("the engine is not running", retry_after=30.0)
        handle = GenerationHandle(request)
        if request.image_strength >= 1.0:
            # Nothing is to be denoised: the answer is the fitted picture itself.
            handle.succeed(GenerationResult(request.image, request.seed))
            return handle
        now = time.monotonic()
        deadline = None if timeout is None else now + timeout
        job = Job(next(self._idents), handle, now, deadline)
        with self._lock:
            if len(self._open) >= self.config.max_queue:
                raise EngineBusy(f"{len(self._open)} requests are waiting already", retry_after=5.0)
            self._open.add(job)
        self._preparer.submit(self._prepare, job)
        return handle

    def drain(self, grace: float = 30.0) -> None:
        """Refuse new work, finish what runs within ``grace`` seconds, fail the rest, stop."""
        self._draining.set()
        give_up = time.monotonic() + grace
        while self.alive and self.backlog and time.monotonic() < give_up:
            time.sleep(0.02)
        self._stop.set()
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join(timeout=60.0)
        self._preparer.shutdown(wait=True, cancel_futures=True)
        self._fail_all(EngineDraining("the server is shutting down", retry_after=5.0))

    def _warm_up(self) -> None:
        """One small picture through every stage, so that the first caller does not wait."""
        image = np.full((320, 320, 3), 127, dtype=np.uint8)
        request = GenerationRequest(image, "a picture", image_strength=0.9, steps=20, seed=1)
        self.submit(request).wait()

    # On the worker that prepares

    def _prepare(self, job: Job) -> None:
        try:
            request = job.request
            started = time.monotonic()
            job.table = make_table(
                request.sampler, request.steps, request.image_strength, self._noise_schedule
            )
            height, width = self.bundle.latent_size(request.width, request.height)
            job.noise = RequestNoise.draw(
                request.seed, (self.bundle.latent_channels, height, width), job.table.draws
            )
            job.timings["prepare"] = time.monotonic() - started
            self._inbox.put(job)
        except Exception as error:
            logger.exception("request %s could not be prepared", job.request.request_id)
            self._finish(job, _as_failure(error))

    # On the engine's thread

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                while not self._stop.is_set():
                    self._receive(block=not (self._waiting or self._running))
                    self._drop_lost()
                    self._admit()
                    self._tick()
        except BaseException:
            logger.critical("the engine's thread has died", exc_info=True)
            raise
        finally:
            if not self._stop.is_set():
                self._dead = True
                self._fail_all(GenerationFailed("the engine's thread has died"))

    def _receive(self, block: bool) -> None:
        """Take in what has arrived."""
        try:
            while True:
                job = self._inbox.get(block, _IDLE_WAIT if block else None)
                block = False
                if job is not None:
                    self._waiting.append(job)
        except queue.Empty:
            return

    def _drop_lost(self) -> None:
        """Let go of what was cancelled or has passed its deadline."""
        now = time.monotonic()
        for job in [*self._waiting, *self._running.values()]:
            if job.handle.cancelled:
                self._finish(job, GenerationCancelled("the request was withdrawn"))
            elif job.deadline is not None and now >= job.deadline:
                self._finish(job, DeadlineExceeded("the request took longer than it may"))

    def _admit(self) -> None:
        """Encode the oldest waiting request and give it a place, if there is one."""
        if not self._waiting or len(self._running) >= self.config.max_batch:
            return
        job = self._waiting.popleft()
        try:
            self._encode(job)
        except Exception as error:
            logger.exception("request %s could not be encoded", job.request.request_id)
            self._finish(job, _as_failure(error))
        for position, waiting in enumerate(self._waiting):
            waiting.handle.publish(Progress(0, len(table_of(waiting)), position + 1))

    def _encode(self, job: Job) -> None:
        started = time.monotonic()
        job.timings["queued"] = started - job.arrived
        request, noise = job.request, job.noise
        assert noise is not None
        text = self._prompts.encode_pair(request.prompt, request.negative_prompt)
        moments = self._pictures.encode(request.image, request.tile)
        latents = start_latents(
            moments, noise, table_of(job), request.image_strength, self.bundle.scaling_factor
        )
        height, width = latents.shape[1:]
        job.key = GroupKey(height, width, text.shape[1], request.tile)
        pool = self._pools.get(job.key)
        if pool is None:
            pool = self._pools[job.key] = LatentPool(self.bundle, job.key, self.config.max_batch)
        job.position = pool.admit(latents, text)
        self._running[job.ident] = job
        job.timings["prepare"] += time.monotonic() - started
        job.handle.publish(Progress(0, len(table_of(job))))

    def _tick(self) -> None:
        """Plan, run one tick, and hand on what has finished."""
        candidates = [
            Candidate(job.ident, job.key, guidance_rows(job.request.cfg_scale), job.arrived)
            for job in self._running.values()
            if job.key is not None
        ]
        members = [self._running[i] for i in plan_tick(candidates, self._limits, self._turns)]
        if not members:
            return
        started = time.monotonic()
        key = members[0].key
        assert key is not None
        self._turns[key] = self._turns.get(key, 0) + 1
        advanced = self._evaluate(self._pools[key], members)
        elapsed = time.monotonic() - started
        for job in advanced:
            job.done += 1
            job.timings["denoise"] = job.timings.get("denoise", 0.0) + elapsed
            job.handle.publish(Progress(job.done, len(table_of(job)), preview=job.preview))
        for job in advanced:
            if job.done == len(table_of(job)):
                self._decode(job)

    def _evaluate(self, pool: LatentPool, members: list[Job]) -> list[Job]:
        """Run a tick for ``members``; gives those that advanced.

        A tick that fails is run again in halves, down to the one request that makes it fail: a
        pool changes only when a tick has gone well. An out-of-memory error ends the same way.
        """
        try:
            tick = self._denoiser.tick(pool, [evaluation_of(job) for job in members])
            self.ticks.count(tick.rows, len(members))
            for job in members:
                job.preview = self._preview(tick.predicted.get(job.position))
            return members
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            if len(members) == 1:
                logger.exception("request %s failed in a tick", members[0].request.request_id)
                self._finish(members[0], _as_failure(error))
                return []
        middle = len(members) // 2
        first = self._evaluate(pool, members[:middle])
        return first + self._evaluate(pool, members[middle:])

    def _preview(self, predicted: torch.Tensor | None) -> Pixels | None:
        if predicted is None:
            return None
        if self._latent_to_rgb is None:
            self._latent_to_rgb = LatentToRgb.fit(self.bundle)
        return self._latent_to_rgb.picture(predicted)

    def _decode(self, job: Job) -> None:
        started = time.monotonic()
        try:
            assert job.key is not None
            latents = self._pools[job.key].latents(job.position)
            if not torch.isfinite(latents).all():
                raise FloatingPointError("the latents are not finite")
            image = decode_latents(self.bundle, latents, job.request.tile)
        except Exception as error:
            logger.exception("request %s could not be decoded", job.request.request_id)
            self._finish(job, _as_failure(error))
            return
        job.timings["decode"] = time.monotonic() - started
        self._finish(job, GenerationResult(image, job.request.seed, job.done, job.timings))

    def _finish(self, job: Job, outcome: GenerationResult | GenerationError) -> None:
        """Take a job out of wherever it is and tell its handle."""
        if job in self._waiting:
            self._waiting.remove(job)
        if self._running.pop(job.ident, None) is not None and job.key is not None:
            pool = self._pools[job.key]
            pool.release(job.position)
            if not any(other.key == job.key for other in self._running.values()):
                # 400 sizes are possible: a pool lives only as long as its requests.
                del self._pools[job.key]
                self._turns.pop(job.key, None)
        with self._lock:
            self._open.discard(job)
        if isinstance(outcome, GenerationResult):
            job.handle.succeed(outcome)
        else:
            job.handle.fail(outcome)

    def _fail_all(self, error: GenerationError) -> None:
        with self._lock:
            jobs, self._open = self._open, set()
        for job in jobs:
            job.handle.fail(error)


def _as_failure(error: Exception) -> GenerationError:
    """Any error as one of ours; what it says of the inside stays in the log."""
    if isinstance(error, GenerationError):
        return error
    failure = GenerationFailed(f"generation failed: {type(error).__name__}")
    failure.__cause__ = error
    return failure
