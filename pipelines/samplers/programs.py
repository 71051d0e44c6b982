"""Samplers as programs of coefficients.

Every sampler is linear in (latents, model outputs, noise) once its sigmas are known. So a sampler
is *compiled*: one row a U-Net evaluation, and the whole sampler is then

    slots = row.mix @ [slot 0, slot 1, slot 2, slot 3, eps, noise]

over four state slots, of which slot 0 is what the U-Net reads. All here is sigma space
(``x = x0 + sigma * noise``) and float64; ``eps`` is the guided noise prediction at slot 0.

Formulas follow k-diffusion's ``sampling.py`` (Karras et al. 2022, Lu et al. 2022) and, for DDIM
and DDPM, the papers of Song et al. 2020 and Ho et al. 2020 as diffusers implements them. They are
in `single_step` and `multistep`. `UNSUPPORTED` in `names` has those that do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from models.noise_schedule import NoiseSchedule
from pipelines.request import Sampler, SigmaSchedule
from pipelines.samplers import multistep, single_step
from pipelines.samplers.coefficients import (
    EPS,
    NOISE,
    SLOTS,
    Step,
    StepBuilder,
    StepCoefficients,
)
from pipelines.samplers.schedules import (
    SAMPLER_SPECS,
    denoising_steps,
    make_schedule,
)

__all__ = [
    "EPS",
    "NOISE",
    "SLOTS",
    "SamplerProgram",
    "StepCoefficients",
    "compile_program",
    "evaluation_count",
    "make_program",
]


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


_COMPILERS: dict[Sampler, Callable[[StepBuilder, Sequence[Step]], None]] = {
    Sampler.DDIM: single_step.euler,
    Sampler.DDPM: single_step.euler_ancestral,
    Sampler.K_DPMPP_2M: multistep.dpmpp_2m,
    Sampler.K_DPMPP_2S_ANCESTRAL: single_step.dpmpp_2s_ancestral,
    Sampler.K_DPM_2: single_step.dpm_2,
    Sampler.K_DPM_2_ANCESTRAL: single_step.dpm_2_ancestral,
    Sampler.K_EULER: single_step.euler,
    Sampler.K_EULER_ANCESTRAL: single_step.euler_ancestral,
    Sampler.K_HEUN: single_step.heun,
    Sampler.K_LMS: multistep.lms,
    Sampler.K_DPMPP_2M_SDE: multistep.dpmpp_2m_sde,
    Sampler.K_DPMPP_SDE: single_step.dpmpp_sde,
    Sampler.K_DPMPP_3M_SDE: multistep.dpmpp_3m_sde,
    Sampler.UNIPC: multistep.unipc,
    Sampler.LCM: single_step.lcm,
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
    builder = StepBuilder(noise_schedule.timestep_at, skipped)
    _COMPILERS[sampler](builder, steps)
    rows = builder.steps
    if sigma[-1] > 0:
        rows[-1] = replace(rows[-1], mix=rows[-1].mix / math.sqrt(1.0 + sigma[-1] ** 2))
    if noise_schedule.prediction_type == "v_prediction":
        rows = [_fold_v_prediction(row) for row in rows]
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
    sigma_schedule: SigmaSchedule = SigmaSchedule.AUTOMATIC,
) -> SamplerProgram:
    """Schedule and compile in one: the program of a request."""
    schedule = make_schedule(sampler, steps, image_strength, noise_schedule, sigma_schedule)
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
