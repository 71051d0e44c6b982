"""Programs over the noise schedules of other models, against diffusers' own schedulers."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from models.noise_schedule import MIN_TRAIN_TIMESTEPS, NoiseSchedule
from pipelines.request import ENGINE_MAX_STEPS, Sampler, SigmaSchedule
from pipelines.samplers.programs import SLOTS, make_program
from pipelines.samplers.schedules import SAMPLER_SPECS, denoising_steps, make_scheduler

V: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True}
TRAINED = {**V, "trained_betas": (np.linspace(0.02, 0.09, 1000) ** 2).tolist()}
COSINE = {**V, "beta_schedule": "squaredcos_cap_v2"}
KNOW_ZERO_SNR = (
    Sampler.DDIM,
    Sampler.DDPM,
    Sampler.K_EULER,
    Sampler.K_EULER_ANCESTRAL,
    Sampler.K_DPMPP_2M,
    Sampler.K_DPMPP_2M_SDE,
    Sampler.UNIPC,
    Sampler.LCM,
)
TWO_STAGE = (Sampler.K_HEUN, Sampler.K_DPM_2)
CASES = [
    *((sampler, ZERO_SNR) for sampler in KNOW_ZERO_SNR),
    *((sampler, TRAINED) for sampler in KNOW_ZERO_SNR + TWO_STAGE),
    # From sigma 20291 on, float32 leaves diffusers' two-stage schedulers nothing of the picture.
    *((sampler, COSINE) for sampler in KNOW_ZERO_SNR),
]


def output(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """What a model answers to an input of unit variance: smooth, and no line."""
    return torch.tanh(x * 1.1 + 0.3 * np.sin(timestep / 170)) * 0.9


def by_diffusers(
    scheduler: Any, steps: int, strength: float, x0: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The end, the start's noise and the draws of the steps."""
    scheduler.set_timesteps(steps)
    begin = steps - denoising_steps(steps, strength)
    timesteps = scheduler.timesteps[begin * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin * scheduler.order)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(x0.shape, generator=generator)
    state = generator.get_state()
    x = scheduler.add_noise(x0, start, timesteps[:1])
    takes = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if takes else {}
    for timestep in timesteps:
        made = output(scheduler.scale_model_input(x, timestep), float(timestep))
        x = scheduler.step(made, timestep, x, **options).prev_sample
    generator.set_state(state)
    draws = [torch.randn(x0.shape, generator=generator) for _ in range(steps)]
    return x, start, draws


@pytest.mark.process
@pytest.mark.parametrize(("sampler", "config"), CASES)
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_program_ends_where_diffusers_own_scheduler_does(
    sampler: Sampler, config: dict[str, Any], strength: float
) -> None:
    steps, x0 = 20, torch.randn((1, 4, 6, 6), generator=torch.Generator().manual_seed(7))
    spec = SAMPLER_SPECS[sampler]
    own = getattr(diffusers, spec.scheduler)(**config, **spec.options)
    schedule = NoiseSchedule.from_config(config)
    program = make_program(sampler, steps, strength, schedule)
    for scheduler in (own, make_scheduler(sampler, schedule)):
        want, start, draws = by_diffusers(scheduler, steps, strength, x0)
        slots = [x0 + program.steps[0].sigma * start, *[torch.zeros_like(x0)] * (SLOTS - 1)]
        for row in program.steps:
            made = output(slots[0] * row.c_in, row.timestep)
            draw = torch.zeros_like(x0) if row.noise is None else draws[row.noise]
            columns = torch.stack([*slots, made, draw]).double()
            slots = list(torch.tensordot(torch.from_numpy(row.mix), columns, dims=1))
        assert (slots[0] - want).abs().max() < 2e-3 * want.abs().max()


def test_zero_terminal_snr_starts_from_almost_pure_noise_with_every_sampler() -> None:
    schedule = NoiseSchedule.from_config(ZERO_SNR)
    for sampler in Sampler:
        for spread in (SigmaSchedule.AUTOMATIC, SigmaSchedule.KARRAS, SigmaSchedule.SGM_UNIFORM):
            first = make_program(sampler, 30, 0.0, schedule, spread).steps[0]
            leading = sampler in (Sampler.DDIM, Sampler.DDPM)
            if not leading or spread is not SigmaSchedule.AUTOMATIC:
                assert first.sigma == pytest.approx(4096, rel=1e-3), sampler


@pytest.mark.process
@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule(num_train_timesteps=MIN_TRAIN_TIMESTEPS),
        NoiseSchedule.from_config(ZERO_SNR),
        NoiseSchedule(1e-4, 0.02, "linear", rescale_betas_zero_snr=True),
        NoiseSchedule.from_config(TRAINED),
        *(NoiseSchedule(beta_schedule=b) for b in ("linear", "squaredcos_cap_v2", "exp")),
        *(NoiseSchedule(beta_schedule=b) for b in ("laplace", "sigmoid")),
    ],
)
def test_what_is_taken_at_load_makes_programs_of_any_length(schedule: NoiseSchedule) -> None:
    for sampler in Sampler:
        for spread in SigmaSchedule:
            for steps in (1, 2, 20, 51, ENGINE_MAX_STEPS):
                program = make_program(sampler, steps, 0.0, schedule, spread)
                assert all(np.isfinite(row.mix).all() for row in program.steps)
