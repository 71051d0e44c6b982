"""Many replicas of one server behind a router that looks at two of them for each request."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.scheduler.cost_model import CostTable
from pipelines.scheduler.scheduler import PolicyConfig
from scripts.benchmarks.simulation.measures import quantile
from scripts.benchmarks.simulation.servers import Device, Outcome, alone_seconds
from scripts.benchmarks.simulation.traces import Arrival


@dataclass(frozen=True)
class FleetResult:
    """``wall`` is what the simulation itself took, in seconds of this machine."""

    slowdown: float
    refused: int
    rows_per_step: float
    wall: float


def serve_by_fleet(
    table: CostTable, trace: Sequence[Arrival], config: PolicyConfig, replicas: int, seed: int = 1
) -> FleetResult:
    """Each request goes to the one of two random replicas that has less predicted work."""
    rng = random.Random(seed)
    started = time.perf_counter()
    outcome = Outcome([math.inf] * len(trace))
    devices = [Device(table, config, outcome) for _ in range(replicas)]
    for arrival in trace:
        pair = [rng.choice(devices), rng.choice(devices)]
        for device in pair:
            device.advance(arrival.at)
        min(pair, key=lambda d: d.scheduler.backlog_seconds()).offer(arrival)
    for device in devices:
        device.advance()
    slowdowns = [
        latency / alone_seconds(table, arrival, config)
        for latency, arrival in zip(outcome.latencies, trace, strict=True)
    ]
    return FleetResult(
        quantile(slowdowns, 0.95),
        sum(math.isinf(latency) for latency in outcome.latencies),
        outcome.rows_per_step,
        time.perf_counter() - started,
    )
