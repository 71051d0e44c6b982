"""Drive the real scheduling policy with a virtual clock, against two other ways of serving.

.venv/bin/python scripts/simulate_load [--table h200] [--mix mixed] [--arrivals poisson]
.venv/bin/python scripts/simulate_load --never-worse [--seeds 10] [--jitter 0.2]
.venv/bin/python scripts/simulate_load --settings [--seeds 3]
.venv/bin/python scripts/simulate_load --replicas 100 --rate 1000 --mix default
.venv/bin/python scripts/simulate_load --write-tables

Slowdown is a request's latency over its own latency on an idle device; goodput is the highest rate
with the p95 slowdown within 2, 3 and 5, refused requests counted as missed. Load is the rate over
what one-at-a-time serving can keep up with at most.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from pipelines.scheduler.cost_model import CostTable
from pipelines.scheduler.scheduler import PolicyConfig
from scripts.benchmarks.simulation import fleet, measures, tables, traces
from scripts.benchmarks.simulation.servers import (
    SERVERS,
    Jitter,
    Server,
    serve_by_policy,
    serve_one_at_a_time,
)

WITHIN = (2.0, 3.0, 5.0)
LOADS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.1, 1.4)
SETTINGS: dict[str, tuple[float, ...]] = {
    "slack_factor": (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 16.0, 32.0, 64.0),
    "min_gain": (0.01, 0.1, 0.2, 0.3, 0.4, 0.5),
}
"""What `--settings` tries, the defaults among them."""


@dataclass(frozen=True)
class Comparison:
    """The policy and one-at-a-time serving on one trace at one load.

    ``base`` and ``ours`` are their p95 slowdowns; ``seconds`` and ``mean`` are ratios of the
    policy's p95 latency and mean latency to one-at-a-time serving's.
    """

    base: float
    ours: float
    seconds: float
    mean: float

    @property
    def slowdown(self) -> float:
        """The ratio of the policy's p95 slowdown to one-at-a-time serving's."""
        return self.ours / self.base


def compare(bench: measures.Bench, load: float, policy: Server = serve_by_policy) -> Comparison:
    """Serve the bench's trace at ``load`` by ``policy`` and one at a time."""
    rate = load * bench.capacity
    base, ours = bench.point(serve_one_at_a_time, rate), bench.point(policy, rate)
    return Comparison(
        base.slowdown,
        ours.slowdown,
        ours.seconds / base.seconds,
        sum(ours.outcome.latencies) / sum(base.outcome.latencies),
    )


def in_words(values: Sequence[float]) -> str:
    """A ratio; of several traces the mean, and in brackets the largest."""
    mean = f"{fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({max(values):.3f})"


def row(*cells: str) -> None:
    """Print one row of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def head(*cells: str) -> None:
    """Print the head of a Markdown table."""
    row(*cells)
    print("|---" * len(cells) + "|")


def print_goodput(bench: measures.Bench) -> None:
    """Goodput of the three servers beside the ceiling of the table, and what saturation gives."""
    ceiling = bench.ceiling
    print(f"One at a time keeps up with {bench.capacity:.3f}/s; the ceiling is {ceiling:.2f}.\n")
    rates = (f"{name}, /s" for name in SERVERS)
    head("p95 within", *rates, "policy over one at a time", "rows a step", "padding")
    for within in WITHIN:
        points = {name: bench.goodput(server, within) for name, server in SERVERS.items()}
        cells = ["below the grid" if p is None else f"{p.rate:.3f}" for p in points.values()]
        ours, base = points["policy"], points["one at a time"]
        cells.append(f"{ours.rate / base.rate:.2f}" if ours and base else "")
        cells.append(f"{ours.outcome.rows_per_step:.2f}" if ours else "")
        cells.append(f"{100 * ours.outcome.padding_waste:.1f} %" if ours else "")
        row(f"{within:g}x", *cells)
    ratio, outcome = measures.saturated_by_policy(bench)
    batches = measures.saturated_by_request_batches(bench)
    print(
        f"\nSaturated (64 outstanding): {ratio:.2f} times one at a time, "
        f"{100 * ratio / ceiling:.0f} % of the ceiling, {outcome.rows_per_step:.2f} rows a step, "
        f"{100 * outcome.padding_waste:.1f} % padding; request batches {batches:.2f}."
    )


def print_never_worse(
    benches: Mapping[int, measures.Bench], loads: Sequence[float], jitter: float
) -> None:
    """p95 and mean of the policy over those of one-at-a-time serving; ``benches`` by their seed."""
    print()
    head("load", "p95 slowdown, one at a time", "policy", "ratio", "p95 seconds", "mean seconds")
    for load in loads:
        found = [
            compare(bench, load, partial(serve_by_policy, jitter=Jitter(jitter, seed)))
            for seed, bench in benches.items()
        ]
        row(
            f"{load:g}",
            f"{fmean(one.base for one in found):.2f}",
            f"{fmean(one.ours for one in found):.2f}",
            in_words([one.slowdown for one in found]),
            in_words([one.seconds for one in found]),
            in_words([one.mean for one in found]),
        )


def print_settings(benches: Collection[measures.Bench], loads: Sequence[float]) -> None:
    """The policy with other values of its settings: means over the benches' traces.

    Saturation is in times of one at a time.
    """
    print("By load: p95 slowdown / largest slowdown / p95 seconds / mean seconds.")
    for name, values in SETTINGS.items():
        print()
        head(f"`{name}`", *(f"load {load:g}" for load in loads), "saturated")
        for value in values:
            change: dict[str, Any] = {name: value}
            varied = [
                measures.Bench(b.table, b.trace, replace(b.config, **change)) for b in benches
            ]
            saturated = fmean(measures.saturated_by_policy(bench)[0] for bench in varied)
            cells = (_four_figures(varied, load) for load in loads)
            row(f"{value:g}", *cells, f"{saturated:.3f}")


def _four_figures(benches: Collection[measures.Bench], load: float) -> str:
    points = [bench.point(serve_by_policy, load * bench.capacity) for bench in benches]
    largest = [
        max(seconds / alone for seconds, alone in zip(p.outcome.latencies, b.alone, strict=True))
        for p, b in zip(points, benches, strict=True)
    ]
    means = [fmean(point.outcome.latencies) for point in points]
    return (
        f"{fmean(p.slowdown for p in points):.2f} / {fmean(largest):.1f} / "
        f"{fmean(p.seconds for p in points):.2f} / {fmean(means):.2f}"
    )


def print_fleet(table: CostTable, config: PolicyConfig, options: argparse.Namespace) -> None:
    """The same load per replica on a tenth of the replicas and on all: time must go up tenfold."""
    mix = traces.MIXES[options.mix]
    print()
    head(
        "replicas", "requests/s", "requests", "p95 slowdown", "refused", "rows a step",
        "simulated in, s", "ms a request",
    )  # fmt: skip
    for replicas in sorted({max(1, options.replicas // 10), options.replicas}):
        rate = options.rate * replicas / options.replicas
        count = math.ceil(rate * options.seconds)
        trace = traces.make_trace(mix, options.arrivals, count, options.seed)
        result = fleet.serve_by_fleet(table, traces.at_rate(trace, rate), config, replicas)
        row(
            f"{replicas}", f"{rate:g}", f"{count}", f"{result.slowdown:.2f}", f"{result.refused}",
            f"{result.rows_per_step:.2f}", f"{result.wall:.1f}",
            f"{1e3 * result.wall / count:.2f}",
        )  # fmt: skip


def main() -> None:
    defaults = PolicyConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", default="h200", help="a name or a JSON file")
    parser.add_argument("--mix", default="mixed", choices=traces.MIXES)
    parser.add_argument("--arrivals", default="poisson", choices=traces.ARRIVALS)
    parser.add_argument("--count", type=int, default=1500, help="requests of a trace")
    parser.add_argument("--seed", type=int, default=1, help="of the (first) trace")
    parser.add_argument("--never-worse", action="store_true", help="p95 over a range of loads")
    parser.add_argument("--settings", action="store_true", help="other values of the defaults")
    parser.add_argument(
        "--seeds", type=int, default=1, help="traces of --never-worse and --settings"
    )
    parser.add_argument(
        "--jitter", type=float, default=0.0, help="of the policy's device, for --never-worse"
    )
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--replicas", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1000.0, help="of all replicas, per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a fleet's trace")
    parser.add_argument("--buckets", type=int, nargs="*", default=list(defaults.limits.buckets))
    parser.add_argument("--max-places", type=int, default=defaults.max_places)
    parser.add_argument("--slack-factor", type=float, default=defaults.slack_factor)
    parser.add_argument("--min-gain", type=float, default=defaults.min_gain)
    parser.add_argument("--write-tables", action="store_true")
    options = parser.parse_args()
    if options.write_tables:
        tables.write_tables()
        return
    table = tables.load_table(options.table)
    config = PolicyConfig(
        max_places=options.max_places,
        limits=replace(defaults.limits, buckets=tuple(options.buckets)),
        slack_factor=options.slack_factor,
        min_gain=options.min_gain,
    )
    print(f"Table {table.provenance.name}, {options.mix}, {options.arrivals}, seed {options.seed}.")
    if options.replicas:
        print_fleet(table, config, options)
        return
    compares = options.never_worse or options.settings
    if compares:
        # Nobody is refused here: a refusal would hide the tail of the slower server.
        config = replace(config, max_queue=10**9)
    benches = {
        seed: measures.Bench(
            table,
            traces.make_trace(traces.MIXES[options.mix], options.arrivals, options.count, seed),
            config,
        )
        for seed in range(options.seed, options.seed + (options.seeds if compares else 1))
    }
    if options.never_worse:
        print_never_worse(benches, options.loads, options.jitter)
    elif options.settings:
        print_settings(benches.values(), options.loads)
    else:
        print_goodput(benches[options.seed])


if __name__ == "__main__":
    main()
