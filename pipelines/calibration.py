"""Measures what work costs on this device, once, at warm-up: the cost table the policy goes by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from models.bundle import ModelBundle
from models.device import synchronize
from pipelines.batching import GroupKey, TickLimits
from pipelines.cost import CostTable, PictureCost, Provenance, TickPoint
from pipelines.denoiser import Denoiser
from pipelines.fast_path import dummy_evaluations
from pipelines.pool import LatentPool
from pipelines.stages import decode_latents, encode_picture
from pipelines.tick_batch import Evaluation

SIDES = (320, 512)
ROWS = (1, 2, 4, 8, 16)

_FIXED_SHARE = 0.5
_ROW_SECONDS = 0.02


def guessed_costs() -> CostTable:
    """For an engine that was not asked to measure: rows gain, and what runs corrects the rest."""
    points = [
        TickPoint(pixels, rows, _ROW_SECONDS * pixels / 1600 * (_FIXED_SHARE + rows / 2))
        for pixels in (1600, 4096)
        for rows in (ROWS[0], ROWS[-1])
    ]
    cost = PictureCost(0.0, _ROW_SECONDS / 1600)
    return CostTable(points, cost, cost, provenance=Provenance("guessed"))


def measure_costs(
    bundle: ModelBundle,
    denoiser: Denoiser,
    limits: TickLimits,
    budget: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
) -> CostTable:
    """Time ticks, an encode and a decode, for about ``budget`` seconds.

    One and two rows of the smallest picture are always timed, more rows and a larger picture as
    long as they can be expected to fit. What is not timed is taken as in proportion to pixels.
    """
    began = clock()
    side, larger = SIDES
    seconds: dict[int, float] = {}
    measure = _TickTimer(bundle, denoiser, side, clock)
    measure(1)  # what the first one pays for kernels and caches is no cost of a tick
    pixels = measure.key.latent_pixels
    for rows in ROWS:
        if rows > limits.rows_for(measure.key):
            break
        if rows > 2 and clock() - began + _expected(seconds, rows) > budget:
            break
        seconds[rows] = measure(rows)
    points = [TickPoint(pixels, rows, value) for rows, value in seconds.items()]

    encode, decode = _picture_seconds(bundle, side, clock)
    grown = (larger / side) ** 2
    if clock() - began + grown * sum(2 * value for value in seconds.values()) <= budget:
        measure = _TickTimer(bundle, denoiser, larger, clock)
        points += [TickPoint(measure.key.latent_pixels, rows, measure(rows)) for rows in seconds]
    return CostTable(
        points,
        PictureCost(0.0, encode / pixels),
        PictureCost(0.0, decode / pixels),
        provenance=Provenance("measured at start", f"{bundle.name} on {bundle.device}"),
    )


def _expected(seconds: dict[int, float], rows: int) -> float:
    """Two runs of ``rows``, going by the last ones."""
    last = max(seconds)
    return 2 * seconds[last] * rows / last


class _TickTimer:
    """Times ticks of one size: ``timer(rows)`` seconds, the better of two runs."""

    def __init__(
        self, bundle: ModelBundle, denoiser: Denoiser, side: int, clock: Callable[[], float]
    ) -> None:
        self._bundle, self._denoiser, self._clock = bundle, denoiser, clock
        self.key = GroupKey(*bundle.latent_size(side, side), bundle.text_length, False)
        # Captured at once, where ticks are: what is timed is what will run.
        patience = 0 if denoiser.captures else None
        self._pool = LatentPool(bundle, self.key, capacity=1, patience=patience)

    def __call__(self, rows: int) -> float:
        evaluations = dummy_evaluations(rows, self._pool.scratch)
        return min(self._once(evaluations) for _ in range(2))

    def _once(self, evaluations: Sequence[Evaluation]) -> float:
        started = self._clock()
        self._denoiser.tick(self._pool, evaluations)
        synchronize(self._bundle.device)
        return self._clock() - started


def _picture_seconds(
    bundle: ModelBundle, side: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds of one encode and one decode of a square picture, the second run of each."""
    image = np.full((side, side, 3), 127, dtype=np.uint8)
    latents = torch.zeros(bundle.latent_channels, *bundle.latent_size(side, side))
    encodes, decodes = [], []
    for _ in range(2):
        started = clock()
        encode_picture(bundle, image, tile=False)
        synchronize(bundle.device)
        middle = clock()
        decode_latents(bundle, latents.to(bundle.device), tile=False)
        encodes.append(middle - started)
        decodes.append(clock() - middle)
    return encodes[-1], decodes[-1]
