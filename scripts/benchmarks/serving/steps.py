"""What a step costs outside the U-Net: the real engine with a U-Net that does nothing.

Timed is from one answer of the U-Net to its next call while all requests of a crowd run, so every
part of the engine's loop is in it, whatever its inside looks like.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from diffusers import AutoencoderKL

from models.bundle import ModelBundle
from models.loading.loader import load_bundle
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import CONTRACT_SAMPLERS, GenerationRequest, Sampler
from scripts.benchmarks.simulation.tables import load_table

CROWDS = (1, 8)
_STEPS = 50
_SKIPPED = 3
"""Steps of a crowd that are not counted: the first ones make buffers."""


@dataclass(frozen=True)
class StepCost:
    """Milliseconds of a step outside the U-Net, median and 90th percentile of ``count``."""

    sampler: Sampler
    requests: int
    count: int
    median: float
    p90: float


@dataclass(frozen=True)
class UnetCall:
    """When the U-Net was called and when it answered, in seconds, and on how many rows."""

    entered: float
    left: float
    rows: int


@dataclass
class NoOpUnet:
    """Stands in for the U-Net's forward: waits a little and gives its input back.

    It waits as long for many rows as for one, as a device would that is far from full: otherwise
    the scheduling policy would find that sharing a step gains nothing, and not share.
    """

    seconds: float = 0.004
    calls: list[UnetCall] = field(default_factory=list)
    thread: int = 0

    def __call__(self, sample: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor]:
        entered = time.perf_counter()
        self.thread = threading.get_ident()
        time.sleep(self.seconds)
        self.calls.append(UnetCall(entered, time.perf_counter(), len(sample)))
        return (sample,)


def hollow_bundle(model: str, device: str, dtype: str) -> tuple[ModelBundle, NoOpUnet]:
    """``model`` with a U-Net that does nothing and a VAE so small that it hardly does."""
    bundle = load_bundle(model, device=device, dtype=dtype)
    unet = NoOpUnet()
    bundle.unet.forward = unet
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=bundle.latent_channels,
        mid_block_add_attention=False,
    )
    if bundle.dtype is not torch.float32:
        vae = vae.to(bundle.dtype)
    return replace(bundle, vae=vae.to(bundle.device).eval()), unet


def crowd(sampler: Sampler, requests: int, size: int, steps: int) -> list[GenerationRequest]:
    image = np.full((size, size, 3), 127, np.uint8)
    return [
        GenerationRequest(
            image, "a picture", image_strength=0.0, sampler=sampler, steps=steps, seed=i + 1
        )
        for i in range(requests)
    ]


def run_crowd(
    engine: Engine, unet: NoOpUnet, sampler: Sampler, requests: int, size: int, steps: int
) -> list[float]:
    """Seconds of every step in which the whole crowd ran, two U-Net rows a request."""
    unet.calls.clear()
    handles = [engine.submit(request) for request in crowd(sampler, requests, size, steps)]
    for handle in handles:
        handle.wait(120)
    full = 2 * requests
    pairs = zip(unet.calls, unet.calls[1:], strict=False)
    seconds = [
        after.entered - before.left for before, after in pairs if before.rows == after.rows == full
    ]
    return seconds[_SKIPPED:]


def measure_steps(
    model: str,
    device: str,
    dtype: str,
    *,
    size: int = 512,
    samplers: Sequence[Sampler] = CONTRACT_SAMPLERS,
    crowds: Sequence[int] = CROWDS,
    steps: int = _STEPS,
    rounds: int = 3,
) -> list[StepCost]:
    """The cost of a step for every sampler and crowd, at ``size`` x ``size``."""
    with hollow_engine(model, device, dtype) as (engine, unet):
        costs = []
        for sampler in samplers:
            for requests in crowds:
                times = [
                    1e3 * seconds
                    for _ in range(rounds)
                    for seconds in run_crowd(engine, unet, sampler, requests, size, steps)
                ]
                if not times:
                    raise RuntimeError(f"no step held all {requests} requests")
                p90 = sorted(times)[int(0.9 * (len(times) - 1))]
                costs.append(StepCost(sampler, requests, len(times), statistics.median(times), p90))
        return costs


class hollow_engine:  # noqa: N801  a context manager, named as one
    """A started engine on a hollow bundle, and its U-Net."""

    def __init__(self, model: str, device: str, dtype: str) -> None:
        bundle, self.unet = hollow_bundle(model, device, dtype)
        # A table on which sharing pays, so that the policy puts the whole crowd into every step.
        self.engine = Engine(bundle, EngineConfig(warm_up=False), load_table("h200"))

    def __enter__(self) -> tuple[Engine, NoOpUnet]:
        self.engine.start()
        return self.engine, self.unet

    def __exit__(self, *_: object) -> None:
        self.engine.drain(10.0)
