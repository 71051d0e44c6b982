"""Samplers as programs of coefficients.

Every sampler is linear in (latents, model outputs, noise) once its sigmas are known. So a sampler
is *compiled*: one row a U-Net evaluation, and the whole sampler is then

    slots = row.mix @ [slot 0, slot 1, slot 2, slot 3, eps, noise]

over four state slots, of which slot 0 is what the U-Net reads. All here is sigma space
(``x = x0 + sigma * noise``) and float64; ``eps`` is the guided noise prediction at slot 0.

Formulas follow k-diffusion's ``sampling.py`` (Karras et al. 2022, Lu et al. 2022) and, for DDIM
and DDPM, the papers of Song et al. 2020 and Ho et al. 2020 as diffusers implements them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipelines.request import Sampler
from pipelines.samplers.schedules import (
    SAMPLER_SPECS,
    Float64,
    NoiseSchedule,
    Schedule,
    denoising_steps,
    make_schedule,
)

SLOTS = 4
EPS = 4
NOISE = 5
COLUMNS = 6
_LMS_ORDER = 4


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


@dataclass(frozen=True, eq=False)
class SamplerProgram:
    """A compiled sampler: its rows in the order they run."""

    sampler: Sampler
    steps: tuple[StepCoefficients, ...]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def draws(self) -> int:
        """The number of noise draws that the steps consume."""
        return sum(row.noise is not None for row in self.steps)

    @property
    def last_step(self) -> int:
        """The number of the last step: as many as the request asked for."""
        return self.steps[-1].step

    def steps_done(self, evaluations: int) -> int:
        """Return the number of steps that are done, or were skipped, after so many evaluations."""
        if evaluations >= len(self.steps):
            return self.last_step
        return self.steps[evaluations].step - 1

    @cached_property
    def slots(self) -> int:
        """The number of state slots in use, 1 to 4. Asked for in every step."""
        used = [0]
        for row in self.steps:
            used.extend(np.nonzero(row.mix.any(axis=1))[0].tolist())
            used.extend(np.nonzero(row.mix[:, :SLOTS].any(axis=0))[0].tolist())
        return max(used) + 1


_Step = tuple[float, float, float]
"""(sigma, next sigma, timestep)."""


class _Builder:
    """Collects rows. Coefficients are given by name and land in the (4, 6) matrix."""

    def __init__(self, timestep_at: Callable[[float], float], skipped: int) -> None:
        self.steps: list[StepCoefficients] = []
        self._draws = 0
        self._timestep_at = timestep_at
        self._step = skipped

    def each(self, steps: Sequence[_Step]) -> Iterator[_Step]:
        """Yield the steps; what is added meanwhile belongs to the one that was yielded last."""
        for step in steps:
            self._step += 1
            yield step

    def add(self, sigma: float, timestep: float | None = None, **slots: Sequence[float]) -> None:
        """One evaluation. ``s0=(c0, c1, c2, c3, eps, noise)`` and likewise s1, s2, s3."""
        mix = np.zeros((SLOTS, COLUMNS))
        for name, coefficients in slots.items():
            mix[int(name[1:]), : len(coefficients)] = coefficients
        noise: int | None = None
        if mix[:, NOISE].any():
            noise = self._draws
            self._draws += 1
        if timestep is None:
            timestep = self._timestep_at(sigma)
        x0 = (1.0, -float(sigma))
        self.steps.append(
            StepCoefficients(self._step, float(sigma), float(timestep), mix, noise, x0)
        )


def _ancestral_step(sigma: float, sigma_next: float) -> tuple[float, float]:
    """(sigma_down, sigma_up) with eta 1: step down to ``sigma_down``, then add ``sigma_up``."""
    if sigma_next == 0.0:
        return 0.0, 0.0
    up = sigma_next * math.sqrt((sigma**2 - sigma_next**2) / sigma**2)
    return sigma_next**2 / sigma, up


def _log_midpoint(sigma: float, sigma_next: float) -> float:
    return math.sqrt(sigma * sigma_next)


def _euler(b: _Builder, steps: Sequence[_Step]) -> None:
    """Euler's method; DDIM with eta 0 is the same line in sigma space."""
    for sigma, sigma_next, timestep in b.each(steps):
        b.add(sigma, timestep, s0=(1, 0, 0, 0, sigma_next - sigma))


def _euler_ancestral(b: _Builder, steps: Sequence[_Step]) -> None:
    """Euler with ancestral noise; DDPM (fixed small variance) is the same line in sigma space."""
    for sigma, sigma_next, timestep in b.each(steps):
        down, up = _ancestral_step(sigma, sigma_next)
        b.add(sigma, timestep, s0=(1, 0, 0, 0, down - sigma, up))


def _heun(b: _Builder, steps: Sequence[_Step]) -> None:
    """Heun's method (Karras et al. 2022, algorithm 1); slot 1 holds the half-finished step."""
    for i, (sigma, sigma_next, timestep) in enumerate(b.each(steps)):
        dt = sigma_next - sigma
        if sigma_next == 0.0:  # Euler method
            b.add(sigma, timestep, s0=(1, 0, 0, 0, dt))
            continue
        b.add(sigma, timestep, s0=(1, 0, 0, 0, dt), s1=(1, 0, 0, 0, dt / 2))
        timestep_next = steps[i + 1][2] if i + 1 < len(steps) else None
        b.add(sigma_next, timestep_next, s0=(0, 1, 0, 0, dt / 2))


def _dpm_2(b: _Builder, steps: Sequence[_Step]) -> None:
    """DPM-Solver-2; slot 1 holds the latents the step began with."""
    for sigma, sigma_next, timestep in b.each(steps):
        _dpm_2_step(b, sigma, sigma_next, 0.0, timestep)


def _dpm_2_ancestral(b: _Builder, steps: Sequence[_Step]) -> None:
    """DPM-Solver-2 down to ``sigma_down``, then noise."""
    for sigma, sigma_next, timestep in b.each(steps):
        down, up = _ancestral_step(sigma, sigma_next)
        _dpm_2_step(b, sigma, down, up, timestep)


def _dpm_2_step(b: _Builder, sigma: float, down: float, up: float, timestep: float) -> None:
    if down == 0.0:  # Euler method
        b.add(sigma, timestep, s0=(1, 0, 0, 0, -sigma))
        return
    middle = _log_midpoint(sigma, down)
    b.add(sigma, timestep, s0=(1, 0, 0, 0, middle - sigma), s1=(1,))
    b.add(middle, None, s0=(0, 1, 0, 0, down - sigma, up))


def _dpmpp_2s_ancestral(b: _Builder, steps: Sequence[_Step]) -> None:
    """DPM-Solver++(2S) with ancestral noise; slot 1 holds the latents the step began with."""
    for sigma, sigma_next, timestep in b.each(steps):
        down, up = _ancestral_step(sigma, sigma_next)
        if down == 0.0:  # Euler method
            b.add(sigma, timestep, s0=(1, 0, 0, 0, -sigma))
            continue
        h = math.log(sigma / down)
        middle = _log_midpoint(sigma, down)
        half, full = -math.expm1(-h / 2), -math.expm1(-h)
        # denoised = slot 0 - sigma * eps
        b.add(sigma, timestep, s0=(middle / sigma + half, 0, 0, 0, -half * sigma), s1=(1,))
        b.add(middle, None, s0=(full, down / sigma, 0, 0, -full * middle, up))


def _dpmpp_2m(b: _Builder, steps: Sequence[_Step]) -> None:
    """DPM-Solver++(2M); slot 1 holds the previous denoised picture."""
    h_last: float | None = None
    for sigma, sigma_next, timestep in b.each(steps):
        denoised = (1, 0, 0, 0, -sigma)
        if sigma_next == 0.0:
            b.add(sigma, timestep, s0=denoised, s1=denoised)
            continue
        h = math.log(sigma / sigma_next)
        ratio, weight = sigma_next / sigma, -math.expm1(-h)
        # The extrapolated denoised is now * denoised - before * previous denoised.
        before = 0.0 if h_last is None else h / (2 * h_last)
        now = 1.0 + before
        b.add(
            sigma,
            timestep,
            s0=(ratio + weight * now, -weight * before, 0, 0, -weight * now * sigma),
            s1=denoised,
        )
        h_last = h


def _lms(b: _Builder, steps: Sequence[_Step]) -> None:
    """Linear multistep of order 4; slots 1 to 3 hold the last derivatives, newest first.

    The order counts the steps since the start of this run, so an image-to-image start in the
    middle of a schedule begins with order 1.
    """
    sigmas = [sigma for sigma, _, _ in steps] + [steps[-1][1]]
    for i, (sigma, _, timestep) in enumerate(b.each(steps)):
        order = min(i + 1, _LMS_ORDER)
        c = [_lms_coefficient(order, sigmas, i, j) for j in range(order)] + [0.0] * 3
        b.add(
            sigma,
            timestep,
            s0=(1, c[1], c[2], c[3], c[0]),
            s1=(0, 0, 0, 0, 1),
            s2=(0, 1),
            s3=(0, 0, 1),
        )


def _lms_coefficient(order: int, sigmas: Sequence[float], i: int, j: int) -> float:
    """The integral of the j-th Lagrange polynomial over step i.

    Gauss-Legendre with 4 nodes is exact to degree 7, and the integrand is of degree 3 at most.
    """
    nodes, weights = np.polynomial.legendre.leggauss(4)
    low, high = sigmas[i], sigmas[i + 1]
    tau = (high - low) / 2 * nodes + (high + low) / 2
    product = np.ones_like(tau)
    for k in range(order):
        if k != j:
            product *= (tau - sigmas[i - k]) / (sigmas[i - j] - sigmas[i - k])
    return float((high - low) / 2 * np.dot(weights, product))


_COMPILERS: dict[Sampler, Callable[[_Builder, Sequence[_Step]], None]] = {
    Sampler.DDIM: _euler,
    Sampler.DDPM: _euler_ancestral,
    Sampler.K_DPMPP_2M: _dpmpp_2m,
    Sampler.K_DPMPP_2S_ANCESTRAL: _dpmpp_2s_ancestral,
    Sampler.K_DPM_2: _dpm_2,
    Sampler.K_DPM_2_ANCESTRAL: _dpm_2_ancestral,
    Sampler.K_EULER: _euler,
    Sampler.K_EULER_ANCESTRAL: _euler_ancestral,
    Sampler.K_HEUN: _heun,
    Sampler.K_LMS: _lms,
}


def compile_program(
    sampler: Sampler | str,
    sigmas: npt.ArrayLike,
    *,
    timesteps: npt.ArrayLike | None = None,
    noise_schedule: NoiseSchedule | None = None,
    skipped: int = 0,
) -> SamplerProgram:
    """Compile a sampler over ``sigmas`` (n + 1,), falling, the last one the end (often 0).

    ``timesteps`` (n,) are those of the steps; left out, they are found from the sigmas in the
    noise schedule, as those of midpoints always are (fractional, interpolated in log sigma).
    ``skipped`` steps of the request come before these.
    A schedule that ends above sigma 0 has the way back to latents, ``1 / sqrt(1 + sigma_end^2)``,
    in its last row. v-prediction is folded into the coefficients. Raises ValueError when the
    sigmas are not finite, positive and strictly falling.
    """
    sampler = Sampler(sampler)
    noise_schedule = noise_schedule or NoiseSchedule()
    sigma = np.asarray(sigmas, dtype=np.float64)
    if sigma.ndim != 1 or len(sigma) < 2:
        raise ValueError("sigmas must be a list of at least two")
    if not np.isfinite(sigma).all() or (np.diff(sigma) >= 0).any() or sigma[-1] < 0:
        raise ValueError("sigmas must be finite and strictly falling, the last at least 0")
    if timesteps is None:
        times = [noise_schedule.timestep_at(s) for s in sigma[:-1]]
    else:
        times = [float(t) for t in np.asarray(timesteps, dtype=np.float64)]
        if len(times) != len(sigma) - 1:
            raise ValueError(f"{len(times)} timesteps for {len(sigma) - 1} steps")
    steps = [(float(sigma[i]), float(sigma[i + 1]), times[i]) for i in range(len(times))]
    builder = _Builder(noise_schedule.timestep_at, skipped)
    _COMPILERS[sampler](builder, steps)
    rows = builder.steps
    if sigma[-1] > 0:
        rows[-1] = replace(rows[-1], mix=rows[-1].mix / math.sqrt(1.0 + sigma[-1] ** 2))
    if noise_schedule.prediction_type == "v_prediction":
        rows = [_fold_v_prediction(row) for row in rows]
    elif noise_schedule.prediction_type != "epsilon":
        raise ValueError(f"prediction_type {noise_schedule.prediction_type!r} is not supported")
    return SamplerProgram(sampler, tuple(rows))


def _fold_v_prediction(row: StepCoefficients) -> StepCoefficients:
    """Rewrite a row over eps as a row over v (Salimans & Ho 2022).

    ``eps = sigma * x / (sigma^2 + 1) + v / sqrt(sigma^2 + 1)`` with x in sigma space.
    """
    on_x, on_v = row.sigma / (row.sigma**2 + 1.0), 1.0 / math.sqrt(row.sigma**2 + 1.0)
    mix = row.mix.copy()
    mix[:, 0] += mix[:, EPS] * on_x
    mix[:, EPS] *= on_v
    a, b = row.x0
    return replace(row, mix=mix, x0=(a + b * on_x, b * on_v))


def make_program(
    sampler: Sampler,
    steps: int,
    image_strength: float,
    noise_schedule: NoiseSchedule | None = None,
) -> SamplerProgram:
    """Schedule and compile in one: the program of a request."""
    schedule: Schedule = make_schedule(sampler, steps, image_strength, noise_schedule)
    return compile_program(
        sampler,
        schedule.sigmas,
        timesteps=schedule.timesteps,
        noise_schedule=noise_schedule,
        skipped=steps - len(schedule.timesteps),
    )


def evaluation_count(sampler: Sampler, steps: int, image_strength: float) -> int:
    """The length of `make_program`'s program, without making it: U-Net evaluations of a request.

    Two-stage samplers evaluate twice a step, but for the last, which ends at sigma 0.
    """
    running = denoising_steps(steps, image_strength)
    two_stage = SAMPLER_SPECS[sampler].evaluations_per_step == 2
    return max(0, 2 * running - 1) if two_stage else running
