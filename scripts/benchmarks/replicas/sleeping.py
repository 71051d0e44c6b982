"""An engine whose device sleeps as long as a measured cost table says that its work takes.

The policy is the real one, so requests share steps as they would on a card: what is missing is the
arithmetic. So two cores can hold eight of them, and show how work is spread.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipelines.engine.refusal import refused
from pipelines.engine.statistics import EngineSnapshot, EngineStatistics
from pipelines.errors import EngineDraining, GenerationError
from pipelines.handle import GenerationHandle
from pipelines.request import GenerationRequest, GenerationResult, Pixels, Progress, Stage
from pipelines.samplers.programs import evaluation_count
from pipelines.scheduler.batching import GroupKey, guidance_rows
from pipelines.scheduler.cost_model import CostTable, ImageCost, SizeCost
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.scheduler import PolicyConfig, Scheduler
from pipelines.scheduler.work import Step, Work
from scripts.benchmarks.simulation.tables import TABLES, load_table
from server.engine_service import LoadedModel, StartError
from server.settings import Settings

WHO = "process"
"""Among the timings of a result: the process that slept for it."""


class SleepingEngine:
    """`server.engine_service.RunningEngine` on a device that is ``slower`` than its table."""

    def __init__(self, table: CostTable, slower: float = 1.0, max_queue: int = 64) -> None:
        self._scheduler = Scheduler(
            slowed(table, slower), PolicyConfig(max_queue=max_queue, max_places=16)
        )
        self._idents = itertools.count()
        self._changed = threading.Condition()
        self._statistics = EngineStatistics()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="sleeping-device", daemon=True)
        self.obstacle: str | None = None

    @property
    def ready(self) -> bool:
        return not self._stopping

    @property
    def alive(self) -> bool:
        return not self._stopping

    def snapshot(self) -> EngineSnapshot:
        with self._changed:
            waiting = len(self._scheduler.waiting())
            running = len(self._scheduler) - waiting
            backlog = self._scheduler.backlog_seconds()
        return EngineSnapshot(running, waiting, backlog, self._statistics)

    def costs_by_size(self) -> Sequence[SizeCost]:
        return self._scheduler.predictions.table.by_size()

    def start(self) -> None:
        self._thread.start()

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
        *,
        taken: bool = False,
    ) -> GenerationHandle:
        if self._stopping:
            raise EngineDraining("the server is shutting down", retry_after=5.0)
        handle, now = GenerationHandle(request), time.monotonic()
        if request.strength >= 1.0:
            handle.succeed(_result(request))  # nothing is denoised, as in the real engine
            return handle
        state = RequestState(
            next(self._idents),
            GroupKey(request.height // 8, request.width // 8, 77, False),
            guidance_rows(request.cfg_scale),
            evaluation_count(request.sampler, request.steps, request.strength),
            arrived=now,
            deadline=None if timeout is None else (arrived or now) + timeout,
            allowed=timeout,
            handle=handle,
            taken=taken,
        )
        with self._changed:
            refusal = self._scheduler.offer(state, now)
            self._changed.notify()
        if refusal is not None:
            raise refused(refusal, request)
        return handle

    def drain(self, grace: float) -> None:
        give_up = time.monotonic() + grace
        while len(self._scheduler) and time.monotonic() < give_up:
            time.sleep(0.02)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        for state in self._scheduler:
            state.end(EngineDraining("the server is shutting down", retry_after=5.0))

    def _work(self) -> None:
        while not self._stopping:
            with self._changed:
                work = self._scheduler.plan(time.monotonic())
                if work is None:
                    self._changed.wait(0.1)
            if work is not None:
                time.sleep(work.seconds)
                self._account(work)
            self._drop_lost()

    def _account(self, work: Work) -> None:
        with self._changed:
            states = {state.ident: state for state in self._scheduler.present(work.idents)}
            finished = self._scheduler.complete(work)
        for ident, state in states.items():
            if ident in finished:
                self._end(state, _result(state.request))
            elif isinstance(work, Step) and state.handle is not None:
                done, most = state.done, state.evaluations
                state.handle.publish(Progress(done, most, done, most, stage=Stage.DENOISING))

    def _drop_lost(self) -> None:
        now = time.monotonic()
        for state in self._scheduler:
            if (error := state.lost(now)) is not None:
                with self._changed:
                    self._scheduler.remove(state.ident)
                self._end(state, error)

    def _end(self, state: RequestState, outcome: GenerationResult | GenerationError) -> None:
        self._statistics.count_end(outcome, state.timeline)
        state.end(outcome)


def slowed(table: CostTable, factor: float) -> CostTable:
    """Return the table of a device on which everything takes ``factor`` times as long."""
    return replace(
        table,
        points=[replace(point, seconds=factor * point.seconds) for point in table.points],
        encode=ImageCost(factor * table.encode.fixed, factor * table.encode.per_pixel),
        decode=ImageCost(factor * table.decode.fixed, factor * table.decode.per_pixel),
        step_overhead=factor * table.step_overhead,
    )


def drawn(request: GenerationRequest) -> Pixels:
    """Return what stands for the image: the picture, and the seed's own noise in its corner."""
    image = request.image.copy()
    noise = np.random.default_rng(request.seed)
    image[:64, :64] = noise.integers(0, 256, image[:64, :64].shape, dtype=np.uint8)
    return image


def _result(request: GenerationRequest) -> GenerationResult:
    return GenerationResult(drawn(request), request.seed, timings={WHO: float(os.getpid())})


def start(settings: Settings) -> LoadedModel:
    """Start by the table and the factor that the model's name has: `h200*8`."""
    table, _, slower = settings.model.partition("*")
    if table not in TABLES:
        raise StartError(f"{table}: no such weights")
    engine = SleepingEngine(load_table(table), float(slower or 1.0), settings.max_queue)
    return LoadedModel(engine=engine, name=settings.model, device="sleeping", dtype="none")


STARTER = f"{__name__}:start"
