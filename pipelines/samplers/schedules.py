"""Schedules: at which noise levels a sampler evaluates the U-Net.

A schedule is the list of timesteps and sigmas that the mapped diffusers scheduler chooses for a
number of steps, or that a `SigmaSchedule` spreads, cut at the denoising strength.
`pipelines.samplers.programs` compiles it.

Spacing is always passed explicitly: a folder written by ``save_pretrained`` carries ``leading``,
and inheriting that would start the K samplers at sigma 8.4 instead of 14.6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from models.noise_schedule import Float64, NoiseSchedule
from pipelines.request import ENGINE_MAX_STEPS, Sampler, SigmaSchedule

_STEP_EPSILON = 1e-6
"""Larger than any float error of ``steps * (1 - image_strength)``, smaller than any real step."""


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
_DPMPP_SDE_OPTIONS: Mapping[str, Any] = {
    **_DPMPP_2M_OPTIONS,
    "algorithm_type": "sde-dpmsolver++",
}
_UNIPC_OPTIONS: Mapping[str, Any] = {
    **_K_OPTIONS,
    "solver_order": 2,
    "solver_type": "bh2",
    "final_sigmas_type": "zero",
}
_LCM_OPTIONS: Mapping[str, Any] = {"original_inference_steps": 50, "clip_sample": False}

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
    Sampler.K_DPMPP_2M_SDE: SamplerSpec("DPMSolverMultistepScheduler", _DPMPP_SDE_OPTIONS),
    # DPMSolverSDEScheduler needs torchsde, and its schedule is Euler's, each step twice.
    Sampler.K_DPMPP_SDE: SamplerSpec("EulerDiscreteScheduler", _K_OPTIONS, evaluations_per_step=2),
    # For its schedule alone: the solver of order 3 differs from k-diffusion's, which is ours.
    Sampler.K_DPMPP_3M_SDE: SamplerSpec(
        "DPMSolverMultistepScheduler", {**_DPMPP_SDE_OPTIONS, "solver_order": 3}
    ),
    Sampler.UNIPC: SamplerSpec("UniPCMultistepScheduler", _UNIPC_OPTIONS),
    Sampler.LCM: SamplerSpec("LCMScheduler", _LCM_OPTIONS),
}

_AS_EULER = frozenset({Sampler.K_DPM_2, Sampler.K_DPM_2_ANCESTRAL, Sampler.K_HEUN, Sampler.K_LMS})
"""Samplers whose schedulers have the timesteps and sigmas of K_EULER's to the bit, most list them
twice, and first make a schedule of all timesteps of the training, which takes long."""


def make_scheduler(sampler: Sampler, schedule: NoiseSchedule | None = None) -> Any:
    """The diffusers scheduler that ``sampler`` maps to, fresh, set up as this server uses it."""
    import diffusers  # takes seconds, and is loaded by the time that a model is

    schedule = schedule or NoiseSchedule()
    spec = SAMPLER_SPECS[sampler]
    own = schedule.is_diffusers_own
    scheduler = getattr(diffusers, spec.scheduler)(
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.beta_schedule if own else "linear",
        num_train_timesteps=schedule.num_train_timesteps,
        prediction_type=schedule.prediction_type,
        **spec.options,
    )
    if not own:
        # Each class knows other beta schedules, and half of them no zero terminal SNR; all of
        # them read this when they are told how many steps to take.
        alphas = scheduler.alphas_cumprod.new_tensor(schedule.alphas_cumprod)
        scheduler.alphas_cumprod = alphas
        if not scheduler.config.get("set_alpha_to_one", True):
            scheduler.final_alpha_cumprod = alphas[0]
    return scheduler


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
    sigma_schedule: SigmaSchedule = SigmaSchedule.AUTOMATIC,
) -> Schedule:
    """The timesteps and sigmas of a sampler, cut at the denoising strength.

    AUTOMATIC are those of the mapped diffusers scheduler. Raises ValueError for steps outside
    1..ENGINE_MAX_STEPS, and for ``image_strength`` 1.0, where nothing is to be denoised.
    """
    if not 1 <= steps <= ENGINE_MAX_STEPS:
        raise ValueError(f"steps: {steps} is not in 1..{ENGINE_MAX_STEPS}")
    kept = denoising_steps(steps, image_strength)
    if kept == 0:
        raise ValueError("image_strength 1.0 leaves no step to run")
    timesteps, sigmas = _full_schedule(
        sampler, steps, noise_schedule or NoiseSchedule(), sigma_schedule
    )
    return Schedule(sampler, timesteps[steps - kept :], sigmas[steps - kept :])


@lru_cache(maxsize=1024)
def _full_schedule(
    sampler: Sampler, steps: int, noise_schedule: NoiseSchedule, sigma_schedule: SigmaSchedule
) -> tuple[Float64, Float64]:
    if sigma_schedule is SigmaSchedule.AUTOMATIC:
        timesteps, sigmas = _diffusers_schedule(sampler, steps, noise_schedule)
    else:
        timesteps, sigmas = _spread_schedule(sampler, steps, noise_schedule, sigma_schedule)
    timesteps.setflags(write=False)
    sigmas.setflags(write=False)
    return timesteps, sigmas


def _diffusers_schedule(
    sampler: Sampler, steps: int, noise_schedule: NoiseSchedule
) -> tuple[Float64, Float64]:
    scheduler = make_scheduler(Sampler.K_EULER if sampler in _AS_EULER else sampler, noise_schedule)
    if sampler is Sampler.LCM and steps > scheduler.config.original_inference_steps:
        # Beyond the timesteps that the distillation knew: evenly over those of the training.
        scheduler.set_timesteps(
            steps, original_inference_steps=scheduler.config.num_train_timesteps
        )
    else:
        scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.numpy().astype(np.float64)
    end = 0.0
    if sampler in (Sampler.DDIM, Sampler.DDPM, Sampler.LCM):
        sigmas = noise_schedule.sigmas[timesteps.astype(np.int64)]
        # DDIM ends at the first training timestep (set_alpha_to_one is off), the others at no
        # noise.
        if sampler is Sampler.DDIM:
            end = float(noise_schedule.sigmas[0])
    else:
        sigmas = scheduler.sigmas.numpy().astype(np.float64)[:steps]
    if len(timesteps) != steps or len(sigmas) != steps:
        raise RuntimeError(f"{sampler}: {len(timesteps)} timesteps for {steps} steps")
    return timesteps, np.append(sigmas, end)


def _karras(count: int, noise_schedule: NoiseSchedule) -> Float64:
    """Karras et al. 2022, equation 5, with rho 7, between the model's lowest and highest sigma."""
    low, high = noise_schedule.sigmas[[0, -1]] ** (1 / 7)
    sigmas: Float64 = np.linspace(high, low, count) ** 7
    return sigmas


def _exponential(count: int, noise_schedule: NoiseSchedule) -> Float64:
    """Evenly in log sigma, as k-diffusion's ``get_sigmas_exponential``."""
    low, high = np.log(noise_schedule.sigmas[[0, -1]])
    sigmas: Float64 = np.exp(np.linspace(high, low, count))
    return sigmas


def _sgm_uniform(count: int, noise_schedule: NoiseSchedule) -> Float64:
    """Evenly in timesteps, the first training timestep being the end and left out."""
    log_sigmas = np.log(noise_schedule.sigmas)
    timesteps = np.linspace(len(log_sigmas) - 1, 0, count + 1)[:-1]
    sigmas: Float64 = np.exp(np.interp(timesteps, np.arange(len(log_sigmas)), log_sigmas))
    return sigmas


_AYS_SIGMAS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


def _align_your_steps(count: int, noise_schedule: NoiseSchedule) -> Float64:
    """The optimized sigmas for Stable Diffusion 1.5 of Sabour et al. 2024, between them log-linear.

    They are the same whatever ``noise_schedule`` is.
    """
    places = np.linspace(0, len(_AYS_SIGMAS) - 1, count)
    sigmas: Float64 = np.exp(np.interp(places, np.arange(len(_AYS_SIGMAS)), np.log(_AYS_SIGMAS)))
    return sigmas


_SPREADS: Mapping[SigmaSchedule, Callable[[int, NoiseSchedule], Float64]] = {
    SigmaSchedule.KARRAS: _karras,
    SigmaSchedule.EXPONENTIAL: _exponential,
    SigmaSchedule.SGM_UNIFORM: _sgm_uniform,
    SigmaSchedule.AYS: _align_your_steps,
}
_WITHOUT_THE_LOWEST = frozenset(
    {Sampler.K_DPM_2, Sampler.K_DPM_2_ANCESTRAL, Sampler.K_DPMPP_3M_SDE}
)
"""Samplers that go to 0 from the lowest sigma but one, as A1111 has it: one more is spread."""


def _spread_schedule(
    sampler: Sampler, steps: int, noise_schedule: NoiseSchedule, sigma_schedule: SigmaSchedule
) -> tuple[Float64, Float64]:
    """The sigmas of a schedule that is the same for all samplers, ending at 0."""
    count = steps + 1 if sampler in _WITHOUT_THE_LOWEST else steps
    sigmas = _SPREADS[sigma_schedule](count, noise_schedule)[:steps]
    timesteps = np.array([noise_schedule.timestep_at(sigma) for sigma in sigmas])
    return timesteps, np.append(sigmas, 0.0)
