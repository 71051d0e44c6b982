"""What a simulated server is worth: slowdown, goodput, saturation, and what the table allows."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from pipelines.scheduler.cost_model import CostTable
from pipelines.scheduler.scheduler import PolicyConfig
from scripts.benchmarks.simulation.servers import (
    Device,
    Outcome,
    Server,
    alone_seconds,
    batch_seconds,
    equal_requests,
)
from scripts.benchmarks.simulation.traces import Arrival, at_rate

WARM_UP = 0.1
"""The share of a trace, from its start, that is not counted."""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


@dataclass(frozen=True)
class Point:
    """One server at one rate. ``slowdown``: p95 of latency over the same request's latency alone.

    ``seconds`` is the p95 of latency; infinite where more than one request in twenty was refused.
    """

    rate: float
    slowdown: float
    seconds: float
    outcome: Outcome


@dataclass
class Bench:
    """One table and one trace (at rate 1); runs servers on them and remembers the results."""

    table: CostTable
    trace: Sequence[Arrival]
    config: PolicyConfig
    _points: dict[tuple[Server, float], Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alone = [alone_seconds(self.table, a, self.config) for a in self.trace]

    @property
    def capacity(self) -> float:
        """Requests a second that one-at-a-time serving can keep up with at most."""
        return len(self.alone) / sum(self.alone)

    @property
    def ceiling(self) -> float:
        """How many times ``capacity`` the table allows: every step as full as it pays.

        Were there always enough requests of every size to fill the cheapest step per row that the
        limits allow. Nothing can beat it at saturation.
        """
        best = 0.0
        for arrival in self.trace:
            pixels = arrival.key.latent_pixels
            room = self.config.limits.rows_for(arrival.key)
            row = min(self.table.step_seconds(pixels, r) / r for r in range(1, room + 1))
            vae = self.table.encode_seconds(pixels) + self.table.decode_seconds(pixels)
            best += vae + arrival.evaluations * arrival.rows * row
        return sum(self.alone) / best

    def point(self, server: Server, rate: float) -> Point:
        known = self._points.get((server, rate))
        if known is None:
            outcome = server(self.table, at_rate(self.trace, rate), self.config)
            counted = range(int(WARM_UP * len(self.trace)), len(self.trace))
            slowdowns = [outcome.latencies[i] / self.alone[i] for i in counted]
            seconds = [outcome.latencies[i] for i in counted]
            known = Point(rate, quantile(slowdowns, 0.95), quantile(seconds, 0.95), outcome)
            self._points[server, rate] = known
        return known

    def goodput(self, server: Server, within: float) -> Point | None:
        """The highest rate of a grid with p95 slowdown at most ``within``; None if there is none.

        The grid has steps of 4 %, from 2 % of ``capacity`` to ten times that.
        """
        grid = [0.02 * 1.04**i for i in range(160)]
        first_bad = bisect.bisect_left(
            grid, True, key=lambda load: self.point(server, load * self.capacity).slowdown > within
        )
        return self.point(server, grid[first_bad - 1] * self.capacity) if first_bad else None


def saturated_by_policy(bench: Bench, outstanding: int = 64) -> tuple[float, Outcome]:
    """Requests a second over ``capacity`` with ``outstanding`` there until the last has come.

    All are finished: those that the policy puts off are mostly large, and a rate without them would
    say too much.
    """
    outcome = Outcome([math.inf] * len(bench.trace))
    device = Device(bench.table, replace(bench.config, max_queue=outstanding), outcome)
    for arrival in bench.trace:
        while len(device.scheduler) >= outstanding:
            device.step()
        device.offer(replace(arrival, at=device.clock))
    device.advance()
    return outcome.finished / device.clock / bench.capacity, outcome


def saturated_by_request_batches(bench: Bench, outstanding: int = 64) -> float:
    """The same for request-level batching."""
    coming = iter(bench.trace)
    queue = list(islice(coming, outstanding))
    clock = 0.0
    while queue:
        batch = equal_requests(queue, bench.config)
        clock += batch_seconds(bench.table, batch, bench.config)
        chosen = {arrival.ident for arrival in batch}
        queue = [arrival for arrival in queue if arrival.ident not in chosen]
        queue += islice(coming, outstanding - len(queue))
    return len(bench.trace) / clock / bench.capacity
