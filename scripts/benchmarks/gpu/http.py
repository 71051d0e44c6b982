"""The default request over HTTP: a real server process, the load generator another."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from scripts.benchmarks.gpu.ledger import Ledger
from scripts.benchmarks.gpu.plan import Scale
from scripts.benchmarks.serving.load import percentile
from scripts.benchmarks.serving.processes import OURS, Model, ServerUnderTest, running_servers
from scripts.benchmarks.serving.traces import EQUAL, Call, make_calls


def measure_http(folder: Path, device: str, dtype: str, scale: Scale, ledger: Ledger) -> None:
    """Seconds until the server is ready, then one client and many."""
    model = Model(str(folder), device, dtype, os.cpu_count() or 1)
    settings = {"capture_sizes": f"{side(scale)}x{side(scale)}"}
    started = time.monotonic()
    with running_servers((OURS,), model, settings) as servers:
        ledger.put(time.monotonic() - started, "http", "ready")
        server = servers[OURS]
        for clients in (1, scale.outstanding):
            count = max(scale.rounds, scale.images * clients // scale.outstanding)
            if not ledger.fits(1.0):
                return
            load(server, clients, default_calls(scale, clients, 1))
            ledger.put(load(server, clients, default_calls(scale, count, 2)), "http", str(clients))


def side(scale: Scale) -> int:
    """Return the side of a picture that is asked for, which the API has a least of."""
    return max(320, scale.size)


def default_calls(scale: Scale, count: int, seed: int) -> list[Call]:
    """Return ``count`` default requests with pictures of their own."""
    calls = make_calls(EQUAL, count, side(scale), seed)
    return [replace(call, fields=call.fields | {"steps": str(scale.steps)}) for call in calls]


def load(server: ServerUnderTest, clients: int, calls: list[Call]) -> dict[str, float]:
    """Images a second of ``clients`` that each ask again once they are answered, and latencies."""
    record = server.offer(calls, [0.0] * len(calls), timeout=120.0, clients=clients)
    answered = len(calls) - len(record.misses)
    return {
        "rate": answered / record.seconds if record.seconds else 0.0,
        "p50": percentile(record.latencies, 0.5),
        "p95": percentile(record.latencies, 0.95),
        "missed": len(record.misses),
    }
