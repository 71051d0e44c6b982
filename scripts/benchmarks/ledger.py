"""Print what keys and credits cost a request, in milliseconds, and spend one balance all at once.

.venv/bin/python scripts/bench_ledger [--requests 300] [--answer-kib 200]

The costs: one request after another on databases that write through to the disk; the median and
the 95th percentile. The crowd: 200 requests at once to a real server (its engine only waits), on an
account of 50 credits, at 0.4 credits each.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable
from contextlib import ExitStack
from pathlib import Path

from scripts.benchmarks.spending_crowd import spend_at_once
from scripts.services.throwaway_postgres import throwaway_postgres
from server.accounts.api_keys import KeyStore
from server.accounts.db import Database
from server.accounts.ledger import Ledger
from server.accounts.types import Idempotency, Order

STEPS = ("find key", "reserve", "settle", "settle and keep the answer", "release")


async def measure(url: str, requests: int, answer: bytes) -> dict[str, list[float]]:
    """Milliseconds of each step."""
    database = Database(url)
    await database.migrate()
    keys, ledger = KeyStore(database), Ledger(database)
    account, key = await keys.create(uuid.uuid4().hex)
    await ledger.grant(account.id, 10**9)
    times: dict[str, list[float]] = {step: [] for step in STEPS}

    async def timed(step: str, work: Awaitable[object]) -> None:
        began = time.perf_counter()
        await work
        times[step].append((time.perf_counter() - began) * 1000)

    for number in range(requests):
        for kind in ("settle", "settle and keep the answer", "release"):
            name = uuid.uuid4().hex
            kept = kind == "settle and keep the answer"
            idempotency = Idempotency(name, "f") if kept else None
            order = Order(name, account.id, 4, "bench", 60.0, name, 1000, idempotency)
            await timed("find key", keys.find(key))
            await timed("reserve", ledger.reserve(order))
            if kind == "release":
                await timed(kind, ledger.release(order))
            else:
                await timed(kind, ledger.settle(name, answer if kept else None))
        del number
    await database.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--answer-kib", type=int, default=200)
    options = parser.parse_args()
    answer = bytes(options.answer_kib * 1024)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {
            "sqlite": f"sqlite:///{folder / 'accounts.db'}",
            "postgresql": stack.enter_context(throwaway_postgres(durable=True)).url,
        }
        times = {
            kind: asyncio.run(measure(url, options.requests, answer)) for kind, url in urls.items()
        }
        print(f"| ms, median (95th percentile) | {' | '.join(urls)} |\n|---|---|---|")
        for step in STEPS:
            cells = [_cell(times[kind][step]) for kind in urls]
            print(f"| {step} | {' | '.join(cells)} |")
        whole = ("find key", "reserve", "settle")
        sums = [sum(statistics.median(times[kind][s]) for s in whole) for kind in urls]
        print(f"| a request: find key, reserve, settle | {sums[0]:.1f} | {sums[1]:.1f} |\n")
        crowds = {kind: spend_at_once(url, folder) for kind, url in urls.items()}
        print(f"| 200 requests at once on 50 credits | {' | '.join(urls)} |\n|---|---|---|")
        for name in crowds["sqlite"]:
            print(f"| {name} | {crowds['sqlite'][name]} | {crowds['postgresql'][name]} |")


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({statistics.quantiles(values, n=20)[-1]:.1f})"


if __name__ == "__main__":
    main()
