"""Schedules: at which noise levels a sampler evaluates the U-Net.

A schedule is the list of timesteps and sigmas that the mapped diffusers scheduler chooses for a
number of steps, cut at the denoising strength. `pipelines.samplers.programs` compiles it to a
table.

Spacing is always passed explicitly: a folder written by ``save_pretrained`` carries ``leading``,
and inheriting that would start the K samplers at sigma 8.4 instead of 14.6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.request import Sampler

Float64 = npt.NDArray[np.float64]

_STEP_EPSILON = 1e-6
"""Larger than any float error of ``steps * (1 - image_strength)``, smaller than any real step."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise schedule a model was trained with (Stable Diffusion's by default)."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Take what a diffusers ``scheduler_config.json`` says, and the default for the rest."""
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        return cls(**known)

    @property
    def sigmas(self) -> Float64:
        """``sqrt((1 - alphas_cumprod) / alphas_cumprod)`` for every training timestep, float64."""
        return _training_sigmas(self)

    def timestep_at(self, sigma: float) -> float:
        """The (fractional) timestep of a noise level, interpolated in log sigma."""
        log_sigmas = np.log(self.sigmas)
        return float(np.interp(math.log(sigma), log_sigmas, np.arange(len(log_sigmas))))


@lru_cache(maxsize=8)
def _training_sigmas(schedule: NoiseSchedule) -> Float64:
    n = schedule.num_train_timesteps
    if schedule.beta_schedule == "scaled_linear":
        betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, n) ** 2
    elif schedule.beta_schedule == "linear":
        betas = np.linspace(schedule.beta_start, schedule.beta_end, n)
    else:
        raise ValueError(f"beta_schedule {schedule.beta_schedule!r} is not supported")
    alphas_cumprod = np.cumprod(1.0 - betas)
    sigmas: Float64 = np.sqrt((1.0 - alphas_cumprod) / alphas_cumprod)
    sigmas.setflags(write=False)
    return sigmas


@dataclass(frozen=True)
class SamplerSpec:
    """The diffusers scheduler that gives a sampler its schedule, and its configuration."""

    scheduler: str
    options: Mapping[str, Any]
    evaluations_per_step: int = 1


# steps_offset does nothing under linspace, but diffusers' pipelines complain of any other value.
_ANCESTRAL_OPTIONS: Mapping[str, Any] = {"timestep_spacing": "linspace", "steps_offset": 1}
_K_OPTIONS: Mapping[str, Any] = {**_ANCESTRAL_OPTIONS, "use_karras_sigmas": False}
_DDIM_OPTIONS: Mapping[str, Any] = {
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_DDPM_OPTIONS: Mapping[str, Any] = {
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "variance_type": "fixed_small",
}
_DPMPP_2M_OPTIONS: Mapping[str, Any] = {
    **_K_OPTIONS,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
}

SAMPLER_SPECS: Mapping[Sampler, SamplerSpec] = {
    Sampler.DDIM: SamplerSpec("DDIMScheduler", _DDIM_OPTIONS),
    Sampler.DDPM: SamplerSpec("DDPMScheduler", _DDPM_OPTIONS),
    Sampler.K_DPMPP_2M: SamplerSpec("DPMSolverMultistepScheduler", _DPMPP_2M_OPTIONS),
    # diffusers has no 2S ancestral: its schedule is Euler ancestral's.
    Sampler.K_DPMPP_2S_ANCESTRAL: SamplerSpec(
        "EulerAncestralDiscreteScheduler", _ANCESTRAL_OPTIONS, evaluations_per_step=2
    ),
    Sampler.K_DPM_2: SamplerSpec("KDPM2DiscreteScheduler", _K_OPTIONS, evaluations_per_step=2),
    Sampler.K_DPM_2_ANCESTRAL: SamplerSpec(
        "KDPM2AncestralDiscreteScheduler", _K_OPTIONS, evaluations_per_step=2
    ),
    Sampler.K_EULER: SamplerSpec("EulerDiscreteScheduler", _K_OPTIONS),
    Sampler.K_EULER_ANCESTRAL: SamplerSpec("EulerAncestralDiscreteScheduler", _ANCESTRAL_OPTIONS),
    Sampler.K_HEUN: SamplerSpec("HeunDiscreteScheduler", _K_OPTIONS, evaluations_per_step=2),
    Sampler.K_LMS: SamplerSpec("LMSDiscreteScheduler", _K_OPTIONS),
}


def make_scheduler(sampler: Sampler, schedule: NoiseSchedule | None = None) -> Any:
    """The diffusers scheduler that ``sampler`` maps to, fresh, set up as this server uses it."""
    import diffusers  # takes seconds, and is loaded by the time that a model is

    schedule = schedule or NoiseSchedule()
    spec = SAMPLER_SPECS[sampler]
    return getattr(diffusers, spec.scheduler)(
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.beta_schedule,
        num_train_timesteps=schedule.num_train_timesteps,
        prediction_type=schedule.prediction_type,
        **spec.options,
    )


def denoising_steps(steps: int, image_strength: float) -> int:
    """Return how many of ``steps`` run: ``floor(steps * (1 - image_strength))``, at least 1 below
    1.0.

    The epsilon is for float error: ``int(10 * (1 - 0.8))`` is 1.
    """
    if image_strength >= 1.0:
        return 0
    return min(steps, max(1, math.floor(steps * (1.0 - image_strength) + _STEP_EPSILON)))


@dataclass(frozen=True)
class Schedule:
    """The steps that run: ``timesteps`` (n,) and ``sigmas`` (n + 1,), the last one the end."""

    sampler: Sampler
    timesteps: Float64
    sigmas: Float64


def make_schedule(
    sampler: Sampler,
    steps: int,
    image_strength: float,
    noise_schedule: NoiseSchedule | None = None,
) -> Schedule:
    """The timesteps and sigmas of the mapped diffusers scheduler, cut at the denoising strength.

    Raises ValueError for ``image_strength`` 1.0, where nothing is to be denoised.
    """
    kept = denoising_steps(steps, image_strength)
    if kept == 0:
        raise ValueError("image_strength 1.0 leaves no step to run")
    timesteps, sigmas = _full_schedule(sampler, steps, noise_schedule or NoiseSchedule())
    return Schedule(sampler, timesteps[steps - kept :], sigmas[steps - kept :])


@lru_cache(maxsize=1024)
def _full_schedule(
    sampler: Sampler, steps: int, noise_schedule: NoiseSchedule
) -> tuple[Float64, Float64]:
    scheduler = make_scheduler(sampler, noise_schedule)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.numpy().astype(np.float64)
    if sampler in (Sampler.DDIM, Sampler.DDPM):
        sigmas = noise_schedule.sigmas[timesteps.astype(np.int64)]
        # DDIM ends at the first training timestep (set_alpha_to_one is off), DDPM at no noise.
        end = float(noise_schedule.sigmas[0]) if sampler is Sampler.DDIM else 0.0
    else:
        # Two-stage schedulers of diffusers list every step twice: take each once.
        stride = scheduler.order
        timesteps = timesteps[::stride]
        sigmas = scheduler.sigmas.numpy().astype(np.float64)[: stride * steps : stride]
        end = 0.0
    if len(timesteps) != steps or len(sigmas) != steps:
        raise RuntimeError(f"{sampler}: {len(timesteps)} timesteps for {steps} steps")
    sigmas = np.append(sigmas, end)
    timesteps.setflags(write=False)
    sigmas.setflags(write=False)
    return timesteps, sigmas
