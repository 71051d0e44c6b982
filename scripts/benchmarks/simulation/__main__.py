"""Drive the real scheduling policy with a virtual clock, against two other ways of serving.

.venv/bin/python scripts/simulate_load [--table h200] [--mix mixed] [--arrivals poisson]
.venv/bin/python scripts/simulate_load --never-worse
.venv/bin/python scripts/simulate_load --replicas 100 --rate 1000 --mix default
.venv/bin/python scripts/simulate_load --write-tables

Slowdown is a request's latency over its own latency on an idle device; goodput is the highest rate
with the p95 slowdown within 2, 3 and 5, refused requests counted as missed. Load is the rate over
what one-at-a-time serving can keep up with at most.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace

from pipelines.scheduler.cost_model import CostTable
from pipelines.scheduler.scheduler import PolicyConfig
from scripts.benchmarks.simulation import fleet, measures, tables, traces
from scripts.benchmarks.simulation.servers import SERVERS, serve_by_policy, serve_one_at_a_time

WITHIN = (2.0, 3.0, 5.0)
LOADS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.1, 1.4)


def print_goodput(bench: measures.Bench) -> None:
    """Goodput of the three servers, as ratios, beside the ceiling of the table."""
    ceiling = bench.ceiling
    print(f"one at a time keeps up with {bench.capacity:.3g}/s; the table allows x{ceiling:.2f}")
    print("within  server            goodput/s  x one-at-a-time  (ceiling)  rows/step  padding")
    for within in WITHIN:
        base = bench.goodput(serve_one_at_a_time, within)
        for name, server in SERVERS.items():
            point = bench.goodput(server, within)
            if point is None:
                print(f"{within:4g}x   {name:16}  below the grid")
                continue
            ratio = math.inf if base is None else point.rate / base.rate
            print(
                f"{within:4g}x   {name:16}  {point.rate:9.3f}  {ratio:15.2f}  "
                f"{ceiling:9.2f}  {point.outcome.rows_per_step:9.2f}  "
                f"{100 * point.outcome.padding_waste:5.1f} %",
                flush=True,
            )
    ratio, outcome = measures.saturated_by_policy(bench)
    batches = measures.saturated_by_request_batches(bench)
    print(
        f"saturated, 64 outstanding: policy x{ratio:.2f} ({100 * ratio / ceiling:.0f} % of the "
        f"ceiling, {outcome.rows_per_step:.2f} rows/step, {100 * outcome.padding_waste:.1f} % "
        f"padding), request batches x{batches:.2f}"
    )


def print_never_worse(bench: measures.Bench, loads: Sequence[float] = LOADS) -> float:
    """p95 of the policy over that of one-at-a-time serving; gives the worst ratio."""
    # Nobody is refused here: a refusal would hide the tail of the slower server.
    patient = replace(bench, config=replace(bench.config, max_queue=10**9), _points={})
    print("load   p95 slowdown: one at a time   policy   ratio   p95 seconds: ratio")
    worst = 0.0
    for load in loads:
        base = patient.point(serve_one_at_a_time, load * patient.capacity)
        ours = patient.point(serve_by_policy, load * patient.capacity)
        slowdown, seconds = ours.slowdown / base.slowdown, ours.seconds / base.seconds
        worst = max(worst, slowdown, seconds)
        print(
            f"{load:4.2f}  {base.slowdown:27.2f}  {ours.slowdown:7.2f}  {slowdown:6.3f}  "
            f"{seconds:19.3f}",
            flush=True,
        )
    print(f"worst ratio {worst:.3f}")
    return worst


def print_fleet(table: CostTable, config: PolicyConfig, options: argparse.Namespace) -> None:
    """The same load per replica on a tenth of the replicas and on all: time must go up tenfold."""
    mix = traces.MIXES[options.mix]
    for replicas in sorted({max(1, options.replicas // 10), options.replicas}):
        rate = options.rate * replicas / options.replicas
        count = math.ceil(rate * options.seconds)
        trace = traces.make_trace(mix, options.arrivals, count, options.seed)
        result = fleet.serve_by_fleet(table, traces.at_rate(trace, rate), config, replicas)
        print(
            f"{replicas} replicas, {rate:g}/s, {count} requests: p95 slowdown "
            f"{result.slowdown:.2f}, refused {result.refused}, {result.rows_per_step:.2f} "
            f"rows/step; simulated in {result.wall:.1f} s, {1e3 * result.wall / count:.2f} "
            "ms a request",
            flush=True,
        )


def main() -> None:
    defaults = PolicyConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", default="h200", help="a name or a JSON file")
    parser.add_argument("--mix", default="mixed", choices=traces.MIXES)
    parser.add_argument("--arrivals", default="poisson", choices=traces.ARRIVALS)
    parser.add_argument("--count", type=int, default=1500, help="requests of a trace")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--never-worse", action="store_true", help="p95 over a range of loads")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--replicas", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1000.0, help="of all replicas, per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a fleet's trace")
    parser.add_argument("--buckets", type=int, nargs="*", default=list(defaults.limits.buckets))
    parser.add_argument("--slack-factor", type=float, default=defaults.slack_factor)
    parser.add_argument("--min-gain", type=float, default=defaults.min_gain)
    parser.add_argument("--write-tables", action="store_true")
    options = parser.parse_args()
    if options.write_tables:
        tables.write_tables()
        return
    table = tables.load_table(options.table)
    config = PolicyConfig(
        limits=replace(defaults.limits, buckets=tuple(options.buckets)),
        slack_factor=options.slack_factor,
        min_gain=options.min_gain,
    )
    print(f"table {table.provenance.name}, {options.mix}, {options.arrivals}, seed {options.seed}")
    if options.replicas:
        print_fleet(table, config, options)
        return
    trace = traces.make_trace(
        traces.MIXES[options.mix], options.arrivals, options.count, options.seed
    )
    bench = measures.Bench(table, trace, config)
    if options.never_worse:
        print_never_worse(bench, options.loads)
    else:
        print_goodput(bench)


if __name__ == "__main__":
    main()
