"""The engine by its public interface: alone, saturated, and a step's cost beside the U-Net."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch

from models.acceleration.modes import choose_acceleration
from models.bundle import ModelBundle
from models.spec import AccelerationMode
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.prompt.encoder import PromptEncoder
from pipelines.request import GenerationRequest
from scripts.benchmarks.gpu.device import (
    captured,
    half,
    make_capturer,
    median_ms,
    peak_memory,
    seconds_of,
)
from scripts.benchmarks.gpu.fast import make_fast
from scripts.benchmarks.gpu.forwards import unet_inputs
from scripts.benchmarks.gpu.ledger import Ledger
from scripts.benchmarks.gpu.model import RandomModel
from scripts.benchmarks.gpu.plan import Scale, ask, several


@contextmanager
def running_engine(
    bundle: ModelBundle, mode: str, scale: Scale
) -> Iterator[tuple[Engine, dict[str, float]]]:
    """An engine as the server configures it, with one hot size, and the seconds of its start.

    Where there are no graphs it has their forwards all the same, with kernels in torch.
    """
    chosen = choose_acceleration(AccelerationMode(mode), bundle.device)
    if mode == "graphs" and not chosen.graphs:
        make_fast(bundle, scale)
    started = time.monotonic()
    config = EngineConfig(acceleration=chosen, capture_sizes=[(scale.size, scale.size)])
    engine = Engine(bundle, config)
    made = time.monotonic()
    engine.start()
    seconds = {"acceleration": made - started, "warm-up": time.monotonic() - made}
    try:
        yield engine, seconds
    finally:
        engine.drain(30.0)


def measure_engine(model: RandomModel, scale: Scale, ledger: Ledger) -> None:
    """What matters most first: whatever the time does not suffice for is left."""
    with running_engine(model.bundle(half()), "graphs", scale) as (engine, seconds):
        ledger.put(engine.bundle.facts.get("acceleration", ""), "engine", "accelerated")
        ledger.put(engine.bundle.facts.get("forwards", "modules"), "engine", "forwards")
        ledger.put(seconds, "engine", "start")
        alone = [_alone(engine, ask(scale, seed)) for seed in range(100, 101 + scale.rounds)][1:]
        latency = statistics.median(whole for whole, _ in alone)
        ledger.put(latency, "engine", "latency")
        stages = {name: [t.get(name, 0.0) for _, t in alone] for name in alone[0][1]}
        ledger.put({n: statistics.median(v) for n, v in stages.items()}, "engine", "stages")
        ledger.put(text_ms(engine.bundle, scale), "engine", "text")
        n = scale.outstanding
        if ledger.fits((scale.images + n) * latency):
            closed_loop(engine, n, several(scale, n, 200))
            ledger.put(closed_loop(engine, n, several(scale, scale.images)), "engine", "saturated")
        ledger.put(peak_memory(), "engine", "peak_memory")
        for rows in scale.profiled:
            expected = (2 * scale.few + scale.many) * latency / scale.evaluations * rows / 2
            if ledger.fits(expected + 1.0):
                ledger.put(step_of(engine, rows, scale), "engine", "steps", str(rows))


@torch.inference_mode()
def text_ms(bundle: ModelBundle, scale: Scale) -> dict[str, float]:
    """Return the milliseconds of a prompt and a negative prompt, none of them kept."""
    found = {}
    for name, capturer in (("as they come", None), ("captured", make_capturer())):
        encoder = PromptEncoder(bundle, cache_bytes=0, capturer=capturer)
        work = partial(encoder.encode, encoder.read("a house", "blurry"))
        found[name] = median_ms(work, scale.rounds)
    return found


def _alone(engine: Engine, request: GenerationRequest) -> tuple[float, dict[str, float]]:
    started = time.perf_counter()
    result = engine.submit(request).wait(600)
    return time.perf_counter() - started, result.timings


def closed_loop(
    engine: Engine, outstanding: int, requests: Sequence[GenerationRequest]
) -> dict[str, float]:
    """Images a second with always ``outstanding`` requests, and their latencies in seconds."""
    latencies: list[float] = []

    def one(request: GenerationRequest) -> None:
        latencies.append(_alone(engine, request)[0])

    with ThreadPoolExecutor(outstanding) as pool:
        seconds = seconds_of(lambda: list(pool.map(one, requests)))
    return {
        "rate": len(requests) / seconds,
        "p50": statistics.median(latencies),
        "worst": max(latencies),
    }


def step_of(engine: Engine, rows: int, scale: Scale) -> dict[str, float]:
    """Milliseconds of a step of ``rows`` rows: what many steps take more than few, so that encode,
    decode and joining fall out; the rows that the policy really put into one; the U-Net alone."""
    _crowd(engine, rows, scale, scale.few)
    few, many = (_crowd(engine, rows, scale, steps) for steps in (scale.few, scale.many))
    steps = max(1, many[1] - few[1])
    bundle = engine.bundle
    with torch.inference_mode():
        inputs = unet_inputs(bundle, scale, rows)
        alone = median_ms(captured(lambda: bundle.predict(*inputs, False)), scale.rounds)
    return {
        "step": 1e3 * (many[0] - few[0]) / steps,
        "unet": alone,
        "rows": rows * (scale.many - scale.few) / steps,
    }


def _crowd(engine: Engine, rows: int, scale: Scale, steps: int) -> tuple[float, int]:
    """Seconds and steps of a crowd of ``rows`` rows, from submission to pictures."""
    wanted = several(scale, max(1, rows // 2), steps=steps, image_strength=0.0)
    before = engine.steps.steps
    seconds = seconds_of(
        lambda: [handle.wait(600) for handle in [engine.submit(one) for one in wanted]]
    )
    return seconds, engine.steps.steps - before
