"""What two parts of the policy are worth: each left out in turn, under jittering times.

Deficit round-robin is left out by credit that never runs out, solitude by a share of waiting
arrivals that is never below its bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from pipelines.scheduler.cost_model import CostTable
from pipelines.scheduler.scheduler import PolicyConfig
from simulation.measures import WARM_UP, quantile
from simulation.servers import Jitter, alone_seconds, serve_by_policy
from simulation.traces import MIXES, at_rate, make_trace

VARIANTS: dict[str, dict[str, float]] = {
    "both": {},
    "no round-robin": {"turn_factor": 1e9},
    "no solitude": {"crowd_share": 0.0},
    "neither": {"turn_factor": 1e9, "crowd_share": 0.0},
}


@dataclass(frozen=True)
class Row:
    """The p95 slowdown of each variant over several seeds: means, and the spread of one."""

    load: float
    jitter: float
    means: dict[str, float]
    spreads: dict[str, float]


def rows(
    table: CostTable,
    config: PolicyConfig,
    *,
    mix: str,
    count: int,
    loads: Sequence[float],
    jitters: Sequence[float],
    seeds: Sequence[int],
) -> Iterator[Row]:
    """Yield the variants' p95 slowdown at each load and jitter. Nobody is refused.

    Every variant meets the same arrivals and the same jitter at each seed.
    """
    patient = replace(config, max_queue=10**9)
    made = [make_trace(MIXES[mix], "poisson", count, seed) for seed in seeds]
    alone = [[alone_seconds(table, a, patient) for a in trace] for trace in made]
    for load in loads:
        for spread in jitters:
            found: dict[str, list[float]] = {name: [] for name in VARIANTS}
            for trace, own, seed in zip(made, alone, seeds, strict=True):
                timed = at_rate(trace, load * len(own) / sum(own))
                for name, changes in VARIANTS.items():
                    variant = replace(patient, **changes)
                    outcome = serve_by_policy(table, timed, variant, Jitter(spread, seed))
                    counted = range(int(WARM_UP * count), count)
                    slowdowns = [outcome.latencies[i] / own[i] for i in counted]
                    found[name].append(quantile(slowdowns, 0.95))
            yield Row(
                load,
                spread,
                {name: fmean(values) for name, values in found.items()},
                {name: stdev(values) for name, values in found.items()},
            )
