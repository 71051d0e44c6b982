"""Print the tables of docs/sizing.md: cards for a rate, and what they do, from the load simulator.

    .venv/bin/python scripts/size_fleet load [--mix default] [--table h200]
    .venv/bin/python scripts/size_fleet queue
    .venv/bin/python scripts/size_fleet cards --rates 1 10 100 1000 --seconds 0.5 1 2

`load` is one card from idle to overload, `queue` the length of its queue at half as much again as
it can do, `cards` the fewest that keep a rate's p95 within so many seconds by three routers.
Nothing here is a measurement of a device: the table says what it is made of.
"""

from __future__ import annotations

import argparse
import math

from pipelines.scheduler.scheduler import PolicyConfig
from scripts.benchmarks.simulation import sizing, tables, traces
from scripts.benchmarks.simulation.measures import Bench

SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.1)
LENGTHS = (8, 16, 32, 64, 128)
ROUTERS = {"any card": 1, "better of two": 2, "best of all": None}


def print_load(bench: Bench) -> None:
    """One card, by the share of what it can do."""
    most = sizing.saturated_rate(bench)
    print(f"one card does {most:.2f} a second at most, {3600 * most:,.0f} an hour\n")
    print("| load | requests/s | median, s | p95, s | refused | rows a step | backlog, s (p95) |")
    print("|---|---|---|---|---|---|---|")
    for share in SHARES:
        load = sizing.one_card(bench, share * most)
        print(
            f"| {100 * share:.0f} % | {load.rate:.2f} | {load.median:.2f} | {load.p95:.2f} | "
            f"{100 * load.refused:.1f} % | {load.rows_per_step:.1f} | {load.backlog:.2f} "
            f"({load.backlog_p95:.2f}) |",
            flush=True,
        )


def print_queue(bench: Bench) -> None:
    """One card under one and a half times what it can do."""
    rate = 1.5 * sizing.saturated_rate(bench)
    print(f"one card, {rate:.2f} requests/s\n")
    print("| IMG2IMG_MAX_QUEUE | served/s | median, s | p95, s | refused |")
    print("|---|---|---|---|---|")
    for length, load in sizing.queues(bench, rate, LENGTHS).items():
        print(
            f"| {length} | {load.served:.2f} | {load.median:.2f} | {load.p95:.2f} | "
            f"{100 * load.refused:.0f} % |",
            flush=True,
        )


def print_cards(bench: Bench, options: argparse.Namespace) -> None:
    """The fewest cards for each rate and p95, by router, with the load that each card then has."""
    most = sizing.saturated_rate(bench)
    print("| requests/s | p95 within, s | " + " | ".join(ROUTERS) + " |")
    print("|---" * (2 + len(ROUTERS)) + "|")
    for rate in options.rates:
        count = max(options.count, math.ceil(options.length * rate))
        trace = traces.make_trace(traces.MIXES[options.mix], options.arrivals, count, options.seed)
        for seconds in options.seconds:
            cells = []
            for choices in ROUTERS.values():
                fewest = max(1, math.ceil(rate / most))
                cards = sizing.cards_needed(
                    bench.table, traces.at_rate(trace, rate), bench.config, fewest, seconds, choices
                )
                cells.append(f"{cards} ({100 * rate / most / cards:.0f} %)")
            print(f"| {rate:g} | {seconds:g} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("load", "queue", "cards"))
    parser.add_argument("--table", default="h200", help="a name or a JSON file")
    parser.add_argument("--mix", default="default", choices=traces.MIXES)
    parser.add_argument("--arrivals", default="poisson", choices=traces.ARRIVALS)
    parser.add_argument("--count", type=int, default=4000, help="requests of a trace, at least")
    parser.add_argument("--length", type=float, default=10.0, help="seconds of a trace, at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-queue", type=int, default=64)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    options = parser.parse_args()
    trace = traces.make_trace(
        traces.MIXES[options.mix], options.arrivals, options.count, options.seed
    )
    config = PolicyConfig(max_queue=options.max_queue)
    bench = Bench(tables.load_table(options.table), trace, config)
    print(f"table {bench.table.provenance.name}, {options.mix}, {options.arrivals}\n")
    if options.what == "load":
        print_load(bench)
    elif options.what == "queue":
        print_queue(bench)
    else:
        print_cards(bench, options)


if __name__ == "__main__":
    main()
