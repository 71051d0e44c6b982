"""Measure how work is spread over engines: `scripts/bench_ray`. Prints tables in Markdown.

The devices sleep by a measured cost table (`sleeping.py`), so that two cores can hold eight. Every
image is checked to be its seed's. Ratios are to as many engines as there are, each alone in this
process with its share of the clients.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from scripts.benchmarks.replicas.cluster import cluster
from scripts.benchmarks.replicas.faults import Fault, faults_of, options
from scripts.benchmarks.replicas.load import Measured, overhead, under_load
from scripts.benchmarks.replicas.sleeping import STARTER, start
from server.engine_service import LoadedModel
from server.replicas.balance import Balance, Size
from server.replicas.processes import start_on_devices
from server.settings import Settings

CLIENTS = 4
"""To each engine."""


class ByChance(Balance):
    """Any replica, as the kernel would choose among servers that listen on one port."""

    def choose(
        self,
        ident: str,
        size: Size,
        seconds: float,
        avoid: Collection[str] = (),
        among: Collection[str] | None = None,
    ) -> list[str]:
        names = super().choose(ident, size, seconds, avoid, among)
        random.shuffle(names)
        self.moved(ident, names[0])
        return names


def chosen(**settings: Any) -> Settings:
    """Return settings without a word in the log."""
    return Settings(**{"device": "cpu", "log_level": "warning", **settings})


@contextmanager
def alone(weights: str) -> Iterator[LoadedModel]:
    """Run one engine in this process."""
    model = start(chosen(model=weights))
    model.engine.start()
    yield model
    model.engine.drain(0.0)


@contextmanager
def processes(weights: str, count: int, by_chance: bool = False) -> Iterator[LoadedModel]:
    """Run ``count`` engines in processes, as `img2img serve --devices` does."""
    model = start_on_devices(chosen(model=weights, devices=str(count)), STARTER)
    model.engine.start()
    replicas = model.engine._replicas  # type: ignore[attr-defined]
    _until_there(replicas.balance, count)
    if by_chance:
        replicas._balance = ByChance()
        _until_there(replicas.balance, count)
    yield model
    model.engine.drain(0.0)


@contextmanager
def joined() -> Iterator[LoadedModel]:
    """Join the cluster of RAY_ADDRESS as a front does."""
    from server.ray.cluster import start_remotely

    model = start_remotely(chosen(ray_address="auto"))
    model.engine.start()
    yield model
    model.engine.drain(0.0)


def _until_there(balance: Balance, count: int) -> None:
    give_up = time.monotonic() + 120
    while len(balance.owed()) < count:
        if time.monotonic() > give_up:
            raise RuntimeError(f"{len(balance.owed())} of {count} engines came up")
        time.sleep(0.1)


def scaling(weights: str, counts: list[int], seconds: float) -> None:
    """Print the scaling table and the overhead of a request."""
    from server.ray.route import balance_of

    with alone(weights) as model:
        one, nothing = under_load(model.engine, CLIENTS, seconds), overhead(model.engine)
    print(f"One engine in this process, {CLIENTS} clients: {one.rate:.2f} images/s\n")
    print("| engines | how | images/s | of the ideal | median s | least, most to one |")
    print("|---|---|---|---|---|---|")
    costs = {"in this process": nothing}
    for count in counts:
        for by_chance in (False, True) if count == max(counts) > 1 else (False,):
            with processes(weights, count, by_chance) as model:
                how = "processes, one by chance" if by_chance else "processes"
                _row(count, how, under_load(model.engine, CLIENTS * count, seconds), one)
                if not by_chance:
                    costs["process"] = min(costs.get("process", 9.0), overhead(model.engine))
    with cluster((2 * max(counts), 2 * max(counts))) as here:
        os.environ.update(here.environment)
        here.deploy(**options(counts[0], weights))
        with joined() as model:
            for count in counts:
                here.deploy(**options(count, weights))
                _until_there(balance_of("img2img"), count)
                time.sleep(3.0)
                _row(count, "Ray", under_load(model.engine, CLIENTS * count, seconds), one)
                costs["Ray"] = min(costs.get("Ray", 9.0), overhead(model.engine))
    print("\n| a request of 512 x 512 that takes the engine no time | ms |\n|---|---|")
    for how, cost in costs.items():
        print(f"| {how} | {1e3 * cost:.1f} |")


def _row(count: int, how: str, found: Measured, one: Measured) -> None:
    shares = found.processes.values()
    print(
        f"| {count} | {how} | {found.rate:.2f} | {found.rate / (count * one.rate):.0%} | "
        f"{found.median:.2f} | {min(shares)}, {max(shares)} |"
        + (f" failed: {found.failures[:3]}" if found.failures else ""),
        flush=True,
    )


def faults(weights: str, seconds: float) -> list[Fault]:
    """Print what clients notice of faults in a cluster of two nodes."""
    with cluster((8, 8), (8, 8)) as here:
        os.environ.update(here.environment)
        here.deploy(**options(4, weights))
        with joined() as model:
            time.sleep(3.0)
            found = faults_of(here, model, 2 * CLIENTS, seconds, weights)
    print("| fault under load | requests | lost | another image | slowest s | |")
    print("|---|---|---|---|---|---|")
    for fault in found:
        measured = fault.measured
        other = sum("another image" in failure for failure in measured.failures)
        lost = len(measured.failures) - other
        print(
            f"| {fault.name} | {len(measured.seconds) + len(measured.failures)} | {lost} | "
            f"{other} | {max(measured.seconds):.2f} | {fault.note} |"
        )
        for failure in measured.failures[:3]:
            print(failure, file=sys.stderr)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 1 if any request was lost."""
    parser = argparse.ArgumentParser(prog="scripts/bench_ray", description=__doc__)
    parser.add_argument("what", choices=("scaling", "faults"))
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--weights", default="h200*8", help="a cost table, and how much slower")
    asked = parser.parse_args(arguments)
    if asked.what == "scaling":
        scaling(asked.weights, sorted(asked.engines), asked.seconds)
        return 0
    return int(any(fault.measured.failures for fault in faults(asked.weights, asked.seconds)))


if __name__ == "__main__":
    sys.exit(main())
