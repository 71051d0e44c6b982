"""What the engine did since it started, in plain numbers: for metrics, or for who holds an engine.

The engine's thread counts, any thread reads (`pipelines.counts`). No torch here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from models.device_usage import DeviceUsage
from pipelines.cache import CacheCounts
from pipelines.counts import Distribution, GraphCounts
from pipelines.errors import DeadlineExceeded, GenerationCancelled, GenerationError
from pipelines.request import GenerationResult
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.work import Decode, Encode, Step, Work
from pipelines.timeline import STAGES, Timeline

SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 20.0, 40.0, 60.0, 120.0, 300.0),
)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RATIOS = (0.25, 0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)

UNIT_STAGES: Mapping[type[Work], str] = {Encode: "encode", Step: "denoise", Decode: "decode"}


@dataclass
class UnitStatistics:
    """The units of one kind: their number, the seconds they took and were predicted to take.

    ``ratio`` has the one divided by the other, of units that the cost model claims to know: what
    failed, or was cached, is left out.
    """

    count: int = 0
    seconds: float = 0.0
    predicted: float = 0.0
    ratio: Distribution = field(default_factory=lambda: Distribution(RATIOS))


@dataclass
class EngineStatistics:
    """Totals since the start.

    ``rows`` are the U-Net rows of requests, ``padding`` what was added to fill a bucket.
    ``step_rows`` has the rows of each step, padding left out, and ``occupancy`` their share of the
    most that a step of its size may have. Requests end as ``images`` or are ``cancelled``,
    ``expired`` or ``failed``. ``shortages`` are steps that ran out of memory and were run again in
    parts.
    """

    evaluations: int = 0
    rows: int = 0
    padding: int = 0
    images: int = 0
    cancelled: int = 0
    expired: int = 0
    failed: int = 0
    shortages: int = 0
    step_rows: Distribution = field(default_factory=lambda: Distribution(ROWS))
    occupancy: Distribution = field(default_factory=lambda: Distribution(SHARES))
    units: dict[str, UnitStatistics] = field(
        default_factory=lambda: {name: UnitStatistics() for name in UNIT_STAGES.values()}
    )
    stages: dict[str, Distribution] = field(
        default_factory=lambda: {stage: Distribution(SECONDS) for stage in STAGES}
    )

    def count_unit(
        self,
        work: Work,
        seconds: float,
        states: Iterable[RequestState],
        ordinary: bool,
        row_limit: int,
    ) -> None:
        """Count a unit that has just ended, here and in the timelines of its requests.

        ``ordinary`` says that the cost model claims to know it, ``row_limit`` is the most rows that
        a step of its size may have.
        """
        stage, now = UNIT_STAGES[type(work)], time.monotonic()
        unit = self.units[stage]
        unit.count += 1
        unit.seconds += seconds
        if ordinary and work.seconds > 0.0:
            unit.predicted += work.seconds
            unit.ratio.observe(seconds / work.seconds)
        if isinstance(work, Step):
            self.evaluations += len(work.idents)
            self.rows += work.rows
            self.padding += work.padded - work.rows
            self.step_rows.observe(work.rows)
            self.occupancy.observe(work.rows / row_limit)
        for state in states:
            state.timeline.extend(stage, now - seconds, now)
            if isinstance(work, Step):
                state.timeline.evaluations += 1
                state.timeline.rows += work.rows

    def count_end(self, outcome: GenerationResult | GenerationError, timeline: Timeline) -> None:
        """Count a request that has ended; the times of its stages only if it has an image."""
        if isinstance(outcome, GenerationCancelled):
            self.cancelled += 1
        elif isinstance(outcome, DeadlineExceeded):
            self.expired += 1
        elif isinstance(outcome, GenerationError):
            self.failed += 1
        else:
            self.images += 1
            for stage, distribution in self.stages.items():
                if (seconds := timeline.seconds(stage)) is not None:
                    distribution.observe(seconds)


@dataclass(frozen=True)
class EngineSnapshot:
    """The engine now: its load, its totals, its caches and graphs by name.

    ``device`` says how full that is when it is called: a card takes long to say it, and most
    snapshots are for the load.
    """

    running: int = 0
    waiting: int = 0
    backlog_seconds: float = 0.0
    statistics: EngineStatistics = field(default_factory=EngineStatistics)
    caches: Mapping[str, CacheCounts] = field(default_factory=dict)
    graphs: Mapping[str, GraphCounts] = field(default_factory=dict)
    device: Callable[[], DeviceUsage] | None = None
