"""The rows of a sampler program, and what builds them.

A row is one U-Net evaluation. All is sigma space (``x = x0 + sigma * noise``) and float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.noise_schedule import Float64

SLOTS = 4
EPS = 4
NOISE = 5
COLUMNS = 6

Step = tuple[float, float, float]
"""(sigma, next sigma, timestep)."""


@dataclass(frozen=True, eq=False)
class StepCoefficients:
    """One U-Net evaluation and what becomes of its output.

    ``mix`` is (4, 6) float64: rows are the new slots; columns are slots 0..3, eps and noise.
    ``noise`` is the index of the step draw that the noise column multiplies, or None.
    ``x0`` is the pair (a, b) of the predicted picture, ``x0 = a * slot 0 + b * eps``.
    ``step`` is the step that the evaluation belongs to, counted from 1 over all that a request
    asked for: those that its image_strength skips are before the first one.
    """

    step: int
    sigma: float
    timestep: float
    mix: Float64
    noise: int | None
    x0: tuple[float, float]

    @property
    def c_in(self) -> float:
        """The factor on slot 0 before the U-Net reads it."""
        return 1.0 / math.sqrt(self.sigma**2 + 1.0)


class StepBuilder:
    """Collects rows. Coefficients are given by name and land in the (4, 6) matrix."""

    def __init__(self, timestep_at: Callable[[float], float], skipped: int = 0) -> None:
        self.steps: list[StepCoefficients] = []
        self._draws = 0
        self._timestep_at = timestep_at
        self._step = skipped

    def each(self, steps: Sequence[Step]) -> Iterator[Step]:
        """Yield the steps; what is added meanwhile belongs to the one that was yielded last."""
        for step in steps:
            self._step += 1
            yield step

    def add(self, sigma: float, timestep: float | None = None, **slots: npt.ArrayLike) -> None:
        """One evaluation. ``s0=(c0, c1, c2, c3, eps, noise)`` and likewise s1, s2, s3."""
        mix = np.zeros((SLOTS, COLUMNS))
        for name, coefficients in slots.items():
            values = np.asarray(coefficients, dtype=np.float64)
            mix[int(name[1:]), : len(values)] = values
        noise: int | None = None
        if mix[:, NOISE].any():
            noise = self._draws
            self._draws += 1
        if timestep is None:
            timestep = self._timestep_at(sigma)
        self.steps.append(
            StepCoefficients(
                self._step, float(sigma), float(timestep), mix, noise, (1.0, -float(sigma))
            )
        )


def ancestral_step(sigma: float, sigma_next: float) -> tuple[float, float]:
    """(sigma_down, sigma_up) with eta 1: step down to ``sigma_down``, then add ``sigma_up``."""
    if sigma_next == 0.0:
        return 0.0, 0.0
    up = sigma_next * math.sqrt((sigma**2 - sigma_next**2) / sigma**2)
    return sigma_next**2 / sigma, up


def log_midpoint(sigma: float, sigma_next: float) -> float:
    return math.sqrt(sigma * sigma_next)
