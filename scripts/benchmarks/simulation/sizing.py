"""How many cards a rate takes, and what a queue does to those who wait: for docs/sizing.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.scheduler.cost_model import CostTable
from pipelines.scheduler.scheduler import PolicyConfig
from scripts.benchmarks.simulation.fleet import serve_by_fleet
from scripts.benchmarks.simulation.measures import WARM_UP, Bench, quantile, saturated_by_policy
from scripts.benchmarks.simulation.servers import Device, Outcome
from scripts.benchmarks.simulation.traces import Arrival, at_rate

MOST_REFUSED = 0.001
"""The share of requests that may be refused where cards are counted."""


@dataclass(frozen=True)
class Load:
    """One card at one rate, in requests and seconds.

    Latencies are of those that were served; ``backlog`` is that which a request finds as it comes.
    """

    rate: float
    served: float
    median: float
    p95: float
    refused: float
    rows_per_step: float
    backlog: float
    backlog_p95: float


def saturated_rate(bench: Bench) -> float:
    """Return the requests a second of one card that always has enough to do."""
    return saturated_by_policy(bench)[0] * bench.capacity


def one_card(bench: Bench, rate: float) -> Load:
    """Serve the bench's trace at ``rate`` on one card; its first tenth is not counted."""
    trace = at_rate(bench.trace, rate)
    outcome = Outcome([math.inf] * len(trace))
    device = Device(bench.table, bench.config, outcome)
    found = []
    for arrival in trace:
        device.advance(arrival.at)
        found.append(device.scheduler.backlog_seconds())
        device.offer(arrival)
    device.advance()
    first = int(WARM_UP * len(trace))
    counted = outcome.latencies[first:]
    served = [seconds for seconds in counted if math.isfinite(seconds)]
    return Load(
        rate,
        outcome.finished / outcome.ended,
        quantile(served, 0.5),
        quantile(served, 0.95),
        1 - len(served) / len(counted),
        outcome.rows_per_step,
        sum(found[first:]) / len(found[first:]),
        quantile(found[first:], 0.95),
    )


def queues(bench: Bench, rate: float, lengths: Sequence[int]) -> dict[int, Load]:
    """Serve a rate that is too high for one card, by the length of its queue."""
    return {
        length: one_card(replace(bench, config=replace(bench.config, max_queue=length)), rate)
        for length in lengths
    }


def cards_needed(
    table: CostTable,
    trace: Sequence[Arrival],
    config: PolicyConfig,
    fewest: int,
    seconds: float,
    choices: int | None,
) -> int:
    """Return the cards with which the trace's p95 stays within ``seconds`` and nobody is refused.

    ``choices`` is of how many cards the router looks at for each request, None of all. ``fewest``
    is where the search begins; it takes what one card's rate allows.
    """

    def enough(cards: int) -> bool:
        looked_at = cards if choices is None else min(choices, cards)
        result = serve_by_fleet(table, trace, config, cards, choices=looked_at)
        return result.refused <= MOST_REFUSED * len(trace) and result.seconds <= seconds

    low, high = fewest - 1, fewest
    while not enough(high):
        low, high = high, math.ceil(high * 1.25)
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
