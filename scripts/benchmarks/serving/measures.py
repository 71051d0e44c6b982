"""What is measured of servers that serve: saturation, latency over the rate, a live event loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scripts.benchmarks.serving.load import Record, percentile
from scripts.benchmarks.serving.processes import BATCHING, EXACT, OURS, PLAIN, ServerUnderTest
from scripts.benchmarks.serving.traces import EQUAL, MIXED, due_times, make_calls

COMPARED = (PLAIN, BATCHING, OURS)


@dataclass(frozen=True)
class SizePlan:
    """How long one picture size is measured.

    ``burst_seconds`` of work come at once for saturation; ``shares`` are offered rates as shares of
    the plain server's images a second at saturation, each for ``window`` seconds.
    """

    size: int
    burst_seconds: float
    window: float
    shares: Sequence[float]
    equal_burst_seconds: float = 0.0
    least: int = 4


@dataclass(frozen=True)
class RunPlan:
    sizes: Sequence[SizePlan]
    exact_seconds: float
    probes: int
    probed: Sequence[str] = COMPARED
    timeout: float = 300.0
    seed: int = 1


RUN_PLANS = {
    "smoke": RunPlan((SizePlan(320, 0.2, 0.5, (0.8,), 0.2, least=3),), 0.2, 20, (OURS,)),
    "short": RunPlan(
        (SizePlan(320, 8, 10, (0.5, 0.9)), SizePlan(512, 10, 10, (0.7,))), 8, 200, (OURS,)
    ),
    "long": RunPlan(
        (
            SizePlan(320, 16, 24, (0.4, 0.7, 0.9, 1.1), 12, least=8),
            SizePlan(512, 20, 24, (0.6, 0.9), least=8),
        ),
        15,
        300,
    ),
}


@dataclass(frozen=True)
class Saturation:
    """All of a trace due at once: ``count`` requests, answered in ``seconds``."""

    count: int
    seconds: float
    cpu_per_image: float
    misses: Sequence[str]

    @property
    def images_per_second(self) -> float:
        return (self.count - len(self.misses)) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Point:
    """Latency at an offered rate, in seconds from when a request was due."""

    rate: float
    count: int
    p50: float
    p95: float
    misses: Sequence[str]
    late: float


@dataclass
class SizeResult:
    plan: SizePlan
    unloaded: dict[str, float] = field(default_factory=dict)
    saturation: dict[str, Saturation] = field(default_factory=dict)
    equal_saturation: dict[str, Saturation] = field(default_factory=dict)
    points: dict[str, list[Point]] = field(default_factory=dict)


@dataclass
class Health:
    """Answers of /health/live while the server was saturated; latencies in seconds."""

    count: int
    failed: int
    p50: float
    p99: float


@dataclass
class Results:
    sizes: list[SizeResult] = field(default_factory=list)
    health: dict[str, Health] = field(default_factory=dict)
    exact: tuple[Saturation, Saturation] | None = None
    """(throughput lane, exact lane) on the same trace."""
    peak_rss: dict[str, int] = field(default_factory=dict)


Servers = Mapping[str, ServerUnderTest]
Say = Callable[[str], None]


def saturate(server: ServerUnderTest, mix: str, count: int, size: int, plan: RunPlan) -> Saturation:
    calls = make_calls(mix, count, size, plan.seed)
    before = server.cpu_seconds()
    record = server.offer(calls, [0.0] * count, timeout=plan.timeout)
    done = max(1, count - len(record.misses))
    return Saturation(
        count, record.seconds, (server.cpu_seconds() - before) / done, tuple(record.misses)
    )


def measure_size(servers: Servers, size: SizePlan, plan: RunPlan, say: Say) -> SizeResult:
    """Everything of one picture size. The servers take turns, so that whatever else the machine
    does falls on all alike."""
    result = SizeResult(size)
    names = [name for name in COMPARED if name in servers]
    # Twice: the first call of a size makes buffers that later ones find.
    for name in names * 2:
        result.unloaded[name] = saturate(servers[name], EQUAL, 1, size.size, plan).seconds
        say(f"{size.size}: {name}, one request alone: {result.unloaded[name]:.2f} s")
    bursts = [(MIXED, size.burst_seconds, result.saturation)]
    if size.equal_burst_seconds:
        bursts.append((EQUAL, size.equal_burst_seconds, result.equal_saturation))
    for mix, seconds, into in bursts:
        count = burst_count(seconds, result.unloaded[names[0]], size.least)
        for name in names:
            into[name] = saturate(servers[name], mix, count, size.size, plan)
            say(
                f"{size.size}: {name}, {count} {mix} requests at once: "
                f"{into[name].images_per_second:.3f}/s{_missed(into[name].misses)}"
            )
    capacity = result.saturation[names[0]].images_per_second
    for turn, share in enumerate(size.shares):
        rate = share * capacity
        count = max(size.least, round(rate * size.window))
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            calls = make_calls(MIXED, count, size.size, plan.seed + 1)
            due = due_times(count, rate, plan.seed + turn)
            point = point_of(rate, servers[name].offer(calls, due, timeout=plan.timeout))
            result.points.setdefault(name, []).append(point)
            say(
                f"{size.size}: {name}, {rate:.3f}/s ({count} requests): p50 {point.p50:.2f} s, "
                f"p95 {point.p95:.2f} s{_missed(point.misses)}"
            )
    return result


def point_of(rate: float, record: Record) -> Point:
    return Point(
        rate,
        len(record.latencies),
        percentile(record.latencies, 0.5),
        percentile(record.latencies, 0.95),
        tuple(record.misses),
        record.late,
    )


def burst_count(seconds: float, alone: float, least: int) -> int:
    """How many requests keep a server busy for about ``seconds``."""
    return max(least, min(48, round(seconds / max(alone, 1e-3))))


def _missed(misses: Sequence[str]) -> str:
    return f", {len(misses)} missed ({', '.join(sorted(set(misses)))})" if misses else ""


def measure_health(
    servers: Servers, size: int, alone: Mapping[str, float], plan: RunPlan, say: Say
) -> dict[str, Health]:
    """Probe /health/live at 40 a second while more requests than the server can do are waiting."""
    measured = {}
    seconds = plan.probes / 40.0 + 2.0
    for name in plan.probed:
        if name not in servers:
            continue
        count = burst_count(seconds, alone[name], 3)
        calls = make_calls(MIXED, count, size, plan.seed + 2)
        record = servers[name].offer(calls, [0.0] * count, timeout=plan.timeout, probes=plan.probes)
        failed = sum(latency is None for latency in record.probes)
        health = Health(
            len(record.probes),
            failed,
            percentile(record.probes, 0.5),
            percentile(record.probes, 0.99),
        )
        measured[name] = health
        say(
            f"{name}: /health/live under saturation: p50 {1e3 * health.p50:.1f} ms, "
            f"p99 {1e3 * health.p99:.1f} ms of {health.count}, {failed} failed"
        )
    return measured


def measure_exact(
    servers: Servers, size: int, alone: float, plan: RunPlan, say: Say
) -> tuple[Saturation, Saturation]:
    """(throughput lane, exact lane) on the same trace, after one request to warm up."""
    count = burst_count(plan.exact_seconds, alone, 3)
    saturate(servers[EXACT], MIXED, 1, size, plan)
    lanes = [saturate(servers[name], MIXED, count, size, plan) for name in (OURS, EXACT)]
    share = lanes[1].images_per_second / (lanes[0].images_per_second or math.nan)
    say(f"exact lane: {100 * share:.0f} % of the throughput lane's images a second")
    return lanes[0], lanes[1]


def measure(servers: Servers, plan: RunPlan, say: Say) -> Results:
    """The whole run."""
    results = Results()
    for size in plan.sizes:
        results.sizes.append(measure_size(servers, size, plan, say))
    first = results.sizes[0]
    results.peak_rss = {name: server.peak_rss() for name, server in servers.items()}
    results.health = measure_health(servers, first.plan.size, first.unloaded, plan, say)
    if EXACT in servers:
        results.exact = measure_exact(servers, first.plan.size, first.unloaded[OURS], plan, say)
    return results
