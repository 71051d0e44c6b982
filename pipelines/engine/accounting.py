"""What a unit of work that has ended means to the requests in it, the policy and the statistics."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from pipelines.engine.device_timer import Elapsed
from pipelines.engine.model_runner import Launched, ModelRunner
from pipelines.engine.statistics import UNIT_STAGES, EngineStatistics
from pipelines.errors import GenerationError, as_failure
from pipelines.request import GenerationResult
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.scheduler import Scheduler
from pipelines.scheduler.work import Encode, Step, Work

logger = logging.getLogger(__name__)

Outcome = GenerationResult | GenerationError


@dataclass(frozen=True)
class Unit:
    """A unit of work that may still be running; with it the ``finished`` requests end."""

    work: Work
    launched: Launched
    finished: list[int]
    elapsed: Elapsed


@dataclass(frozen=True)
class Accounting:
    """Of the engine's thread, which shares the scheduler with others under its ``lock``."""

    scheduler: Scheduler
    lock: threading.Lock
    runner: ModelRunner

    def outcomes(self, unit: Unit, statistics: EngineStatistics) -> dict[int, Outcome]:
        """Wait for a unit's end, learn from its time and report progress; return the outcomes of
        the requests that it ends, by ident."""
        work, launched, seconds = unit.work, unit.launched, unit.elapsed()
        with self.lock:
            if launched.ordinary:
                self.scheduler.predictions.learn(work, seconds, launched.text_chunks)
            states = self.scheduler.present(work.idents)
            left = self.scheduler.seconds_left(work)
        limit = self.scheduler.config.limits.rows_for(work.key)
        statistics.count_unit(work, seconds, states, launched.ordinary, limit)
        statistics.shortages += launched.out_of_memory
        outcomes: dict[int, Outcome] = {**launched.failures}
        for state in states:
            state.spend(UNIT_STAGES[type(work)], seconds)
            if state.ident in launched.failures:
                continue
            if state.ident in unit.finished:
                outcomes[state.ident] = self._result(state)
            elif isinstance(work, Step):
                state.ended += 1
                draw = launched.previews.get(state.ident)
                if draw is not None and state.ended > 0:
                    state.preview = draw()
                state.publish(left[state.ident])
            elif isinstance(work, Encode) and state.encoded:
                wanted = state.lost(time.monotonic()) is None
                failure = self._check_encoded(state) if launched.last and wanted else None
                if failure is None:
                    state.publish(left[state.ident])
                else:
                    outcomes[state.ident] = failure
        return outcomes

    def _check_encoded(self, state: RequestState) -> GenerationError | None:
        """Have a request whose encode overflowed begin its steps anew, or return why it fails."""
        try:
            if not self.runner.check_encoded(state.ident):
                with self.lock:
                    self.scheduler.begin_steps_anew(state.ident)
        except Exception as error:
            logger.exception("request %s could not be encoded", state.request.request_id)
            return as_failure(error)
        return None

    def _result(self, state: RequestState) -> Outcome:
        try:
            image = self.runner.picture(state.ident)
        except Exception as error:
            logger.exception("request %s could not be decoded", state.request.request_id)
            return as_failure(error)
        return GenerationResult(image, state.request.seed, state.done, state.timings)
