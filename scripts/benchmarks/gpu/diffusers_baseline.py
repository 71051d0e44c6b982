"""diffusers as a user writes it, one picture at a time: the baseline."""

from __future__ import annotations

import statistics

from gpu_benchmark.device import half, seconds_of
from gpu_benchmark.ledger import Ledger
from gpu_benchmark.model import RandomModel, make_pipeline, run_pipeline
from gpu_benchmark.plan import Scale, ask


def measure_diffusers(model: RandomModel, scale: Scale, ledger: Ledger) -> None:
    """The default request's seconds, and images a second."""
    pipeline = make_pipeline(model.bundle(half()))
    run_pipeline(pipeline, ask(scale))
    times: list[float] = []
    while len(times) < scale.rounds and (not times or ledger.fits(times[-1])):
        request = ask(scale, 100 + len(times))
        times.append(seconds_of(lambda request=request: run_pipeline(pipeline, request)))
    seconds = statistics.median(times)
    ledger.put({"latency": seconds, "rate": 1 / seconds}, "diffusers")
