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
    """``seconds`` is the p95 of latency, with a refused request's infinite; ``wall`` is what the
    simulation itself took, in seconds of this machine."""

    slowdown: float
    seconds: float
    refused: int
    rows_per_step: float
    wall: float


def serve_by_fleet(
    table: CostTable,
    trace: Sequence[Arrival],
    config: PolicyConfig,
    replicas: int,
    seed: int = 1,
    choices: int = 2,
) -> FleetResult:
    """Each request goes to the one of ``choices`` random replicas that has least predicted work.

    With one choice it goes anywhere, as a Kubernetes Service sends it; with as many as there are
    replicas it goes to the best of all.
    """
    rng = random.Random(seed)
    started = time.perf_counter()
    outcome = Outcome([math.inf] * len(trace))
    devices = [Device(table, config, outcome) for _ in range(replicas)]
    for arrival in trace:
        if choices >= replicas:
            looked_at = devices
        else:
            looked_at = [rng.choice(devices) for _ in range(choices)]
        for device in looked_at:
            device.advance(arrival.at)
        min(looked_at, key=lambda d: d.scheduler.backlog_seconds()).offer(arrival)
    for device in devices:
        device.advance()
    slowdowns = [
        latency / alone_seconds(table, arrival, config)
        for latency, arrival in zip(outcome.latencies, trace, strict=True)
    ]
    return FleetResult(
        quantile(slowdowns, 0.95),
        quantile(outcome.latencies, 0.95),
        sum(math.isinf(latency) for latency in outcome.latencies),
        outcome.rows_per_step,
        time.perf_counter() - started,
    )
