"""diffusers as a user writes it, one picture at a time: the baseline."""

from __future__ import annotations

import statistics
from functools import partial

from scripts.benchmarks.gpu.device import half, seconds_of
from scripts.benchmarks.gpu.ledger import Ledger
from scripts.benchmarks.gpu.model import RandomModel, make_pipeline, run_pipeline
from scripts.benchmarks.gpu.plan import Scale, ask


def measure_diffusers(model: RandomModel, scale: Scale, ledger: Ledger) -> None:
    """The default request's seconds, and images a second."""
    pipeline = make_pipeline(model.bundle(half()))
    run_pipeline(pipeline, ask(scale))
    times: list[float] = []
    while len(times) < scale.rounds and (not times or ledger.fits(times[-1])):
        request = ask(scale, 100 + len(times))
        times.append(seconds_of(partial(run_pipeline, pipeline, request)))
    seconds = statistics.median(times)
    ledger.put({"latency": seconds, "rate": 1 / seconds}, "diffusers")
