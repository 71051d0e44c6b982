"""Measures what work costs on this device, once, at warm-up: the cost table the policy goes by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from models.acceleration.cuda_graphs import Capturer
from models.acceleration.modes import ROW_BUCKETS
from models.bundle import ModelBundle
from models.device import synchronize
from pipelines.denoise.batch import Evaluation
from pipelines.denoise.latent_pool import LONGEST_CAPTURED, LatentPool
from pipelines.engine.model_runner import ModelRunner
from pipelines.engine.warmup import dummy_evaluations
from pipelines.scheduler.batching import GroupKey, StepLimits
from pipelines.scheduler.cost_model import CostTable, ImageCost, Provenance, StepPoint, TextCost
from pipelines.vae.decode import decode_latents, decode_together
from pipelines.vae.encode import encode_image
from pipelines.vae.graphs import VaeGraphs

SIDES = (320, 512)

_FIXED_SHARE = 0.5
_ROW_SECONDS = 0.02

TEXT_CHUNKS = 33
_TEXT_SHARE = 0.015
_FIXED_TEXT = 2 / 3
"""Of Stable Diffusion 1.5 at the smallest size: what a row takes more for each further chunk of
text (4.4 GFLOP of 284), and the part of it that is keys and values, whatever the size (3.0)."""


def guessed_costs() -> CostTable:
    """For an engine that was not asked to measure: rows gain, and what runs corrects the rest."""
    points = [
        StepPoint(pixels, rows, _ROW_SECONDS * pixels / 1600 * (_FIXED_SHARE + rows / 2))
        for pixels in (1600, 4096)
        for rows in (ROW_BUCKETS[0], ROW_BUCKETS[-1])
    ]
    cost = ImageCost(0.0, _ROW_SECONDS / 1600)
    text = TextCost(_text_step(_TEXT_SHARE * _ROW_SECONDS / 2, 1600), _ROW_SECONDS / 2)
    return CostTable(points, cost, cost, text=text, provenance=Provenance("guessed"))


def _text_step(seconds: float, pixels: int) -> ImageCost:
    """Return the seconds that a further chunk of text adds to a row, from what it takes at one
    size."""
    return ImageCost(seconds * _FIXED_TEXT, seconds * (1.0 - _FIXED_TEXT) / pixels)


def measure_costs(
    runner: ModelRunner,
    limits: StepLimits,
    budget: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
) -> CostTable:
    """Time steps, an encode and a decode, for about ``budget`` seconds, as they will run.

    Where they are captured it is in graphs of their own, but for those that warm-up has made.
    One and two rows of the smallest picture are always timed, more rows, a long text and a larger
    picture as long as they can be expected to fit. What is not timed is taken as in proportion to
    pixels, and what a long text adds as in Stable Diffusion 1.5.
    """
    bundle = runner.bundle
    began = clock()
    side, larger = SIDES
    seconds: dict[int, float] = {}
    measure = _StepTimer(runner, limits, side, clock)
    measure(1)  # what the first one pays for kernels and caches is no cost of a step
    pixels = measure.key.latent_pixels
    for rows in ROW_BUCKETS:
        if rows > limits.rows_for(measure.key):
            break
        if rows > 2 and clock() - began + _expected(seconds, rows) > budget:
            break
        seconds[rows] = measure(rows)
    points = [StepPoint(pixels, rows, value) for rows, value in seconds.items()]

    more = _TEXT_SHARE * seconds[1]
    if clock() - began + 3 * seconds[1] <= budget:
        # Where steps are captured no longer text's ever is.
        chunks = LONGEST_CAPTURED // bundle.text_length if runner.denoiser.captures else TEXT_CHUNKS
        measure = _StepTimer(runner, limits, side, clock, chunks)
        more = max(0.0, measure(1) - seconds[1]) / (chunks - 1)
    text = TextCost(
        _text_step(more, pixels),
        _text_seconds(runner, clock),
        chunk_tokens=bundle.text_length,
    )
    encode, decode = _image_seconds(bundle, side, clock, runner.capturer)
    grown = (larger / side) ** 2
    if clock() - began + grown * sum(2 * value for value in seconds.values()) <= budget:
        measure = _StepTimer(runner, limits, larger, clock, most=max(seconds))
        points += [StepPoint(measure.key.latent_pixels, rows, measure(rows)) for rows in seconds]
    return CostTable(
        points,
        ImageCost(0.0, encode / pixels),
        ImageCost(0.0, decode / pixels),
        text=text,
        provenance=Provenance("measured at start", f"{bundle.name} on {bundle.device}"),
    )


def _expected(seconds: dict[int, float], rows: int) -> float:
    """Two runs of ``rows``, going by the last ones."""
    last = max(seconds)
    return 2 * seconds[last] * rows / last


class _StepTimer:
    """Times steps of one size and text: ``timer(rows)`` seconds, the better of two runs.

    ``most`` are the rows that it will time at most.
    """

    def __init__(
        self,
        runner: ModelRunner,
        limits: StepLimits,
        side: int,
        clock: Callable[[], float],
        chunks: int = 1,
        most: int = 2,
    ) -> None:
        bundle = self._bundle = runner.bundle
        self._denoiser, self._limits, self._clock = runner.denoiser, limits, clock
        tokens = chunks * bundle.text_length
        self.key = GroupKey(*bundle.latent_size(side, side), tokens, False)
        # What is captured in a pool that serves stays there: no rows that will never run.
        if self.key in runner.pools and most <= limits.rows_for(self.key):
            self._pool = runner.pools[self.key]
        else:
            # Captured at once, where steps are: what is timed is what will run.
            patience = 0 if runner.denoiser.captures else None
            self._pool = LatentPool(bundle, self.key, capacity=1, patience=patience)

    def __call__(self, rows: int) -> float:
        evaluations = dummy_evaluations(rows, self._pool.scratch)
        padded = self._limits.padded(rows)
        return min(self._once(evaluations, padded) for _ in range(2))

    def _once(self, evaluations: Sequence[Evaluation], padded: int) -> float:
        started = self._clock()
        self._denoiser.step(self._pool, evaluations, padded)
        synchronize(self._bundle.device)
        return self._clock() - started


def _text_seconds(runner: ModelRunner, clock: Callable[[], float]) -> float:
    """Seconds of encoding one chunk of text, the second run."""
    for _ in range(2):
        started = clock()
        runner.prompts.encode_empty()
        synchronize(runner.bundle.device)
        seconds = clock() - started
    return seconds


def _image_seconds(
    bundle: ModelBundle, side: int, clock: Callable[[], float], capturer: Capturer | None
) -> tuple[float, float]:
    """Seconds of one encode and one decode of a square picture, the second run of each."""
    image = np.full((side, side, 3), 127, dtype=np.uint8)
    size = bundle.latent_size(side, side)
    latents = torch.zeros(bundle.latent_channels, *size)
    graphs = None if capturer is None else VaeGraphs(capturer, [size])
    encodes, decodes = [], []
    for _ in range(2):
        started = clock()
        encode_image(bundle, image, False, graphs)
        synchronize(bundle.device)
        middle = clock()
        if graphs is None:
            decode_latents(bundle, latents.to(bundle.device), tile=False)
        else:
            decode_together(bundle, [latents.to(bundle.device)], graphs)[0].wait()
        encodes.append(middle - started)
        decodes.append(clock() - middle)
    return encodes[-1], decodes[-1]
