"""The samplers beyond the contract's, and the schedules, against formulas that are written here.

The formulas are k-diffusion's ``sampling.py``; for UniPC, LCM and again DPM++ 2M SDE and SDE the
oracle is diffusers' scheduler, driven in float64.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pipelines.request import ENGINE_MAX_STEPS, Sampler, SigmaSchedule
from pipelines.samplers.programs import (
    NOISE,
    SLOTS,
    SamplerProgram,
    compile_program,
    evaluation_count,
    make_program,
)
from pipelines.samplers.schedules import (
    SAMPLER_SPECS,
    NoiseSchedule,
    make_schedule,
    make_scheduler,
)

Array = np.ndarray
Denoiser = Callable[[Array, float], Array]
NoiseSampler = Callable[[float, float], Array]

SHAPE = (1, 4, 6, 6)
SPREAD = [s for s in SigmaSchedule if s is not SigmaSchedule.AUTOMATIC]
STARTS = [(1, 0.0), (2, 0.0), (3, 0.0), (9, 0.35), (20, 0.0), (20, 0.62), (150, 0.35)]


def denoiser(x: Array, sigma: float) -> Array:
    """A denoiser in closed form, not linear in x."""
    image: Array = (x + sigma**2 * np.tanh(x / (1 + sigma))) / (1 + sigma**2)
    return image


def eps_of(x: Array, sigma: float) -> Array:
    return (x - denoiser(x, sigma)) / sigma


def run_program(program: SamplerProgram, x: Array, draws: list[Array]) -> Array:
    """Run a program in float64."""
    slots = [x] + [np.zeros_like(x)] * (SLOTS - 1)
    for row in program.steps:
        draw = np.zeros_like(x) if row.noise is None else draws[row.noise]
        columns = np.stack([*slots, eps_of(slots[0], row.sigma), draw])
        slots = list(np.tensordot(row.mix, columns, axes=1))
    return slots[0]


def relative_error(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def start_and_draws(sigma: float, count: int) -> tuple[Array, list[Array]]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=SHAPE) + sigma * rng.normal(size=SHAPE)
    return x, list(rng.normal(size=(count, *SHAPE)))


def dpmpp_2m_sde(model: Denoiser, x: Array, sigmas: Array, noise: NoiseSampler) -> Array:
    """k-diffusion's sample_dpmpp_2m_sde, eta 1, midpoint."""
    old, h_last = None, 0.0
    for now, then in pairwise(sigmas):
        denoised = model(x, now)
        if then == 0:
            x = denoised
        else:
            h = eta_h = math.log(now) - math.log(then)
            x = then / now * math.exp(-eta_h) * x - math.expm1(-h - eta_h) * denoised
            if old is not None:
                x = x - 0.5 * math.expm1(-h - eta_h) / (h_last / h) * (denoised - old)
            x = x + noise(now, then) * then * math.sqrt(-math.expm1(-2 * eta_h))
            h_last = h
        old = denoised
    return x


def dpmpp_3m_sde(model: Denoiser, x: Array, sigmas: Array, noise: NoiseSampler) -> Array:
    """k-diffusion's sample_dpmpp_3m_sde, eta 1."""
    history: list[tuple[Array, float]] = []
    for now, then in pairwise(sigmas):
        denoised = model(x, now)
        if then == 0:
            return denoised
        h = math.log(now) - math.log(then)
        h_eta = 2 * h
        x = math.exp(-h_eta) * x - math.expm1(-h_eta) * denoised
        phi_2 = math.expm1(-h_eta) / h_eta + 1
        if len(history) >= 2:
            (one, h_1), (two, h_2) = history[-1], history[-2]
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - one) / r0, (one - two) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif history:
            x = x + phi_2 * (denoised - history[-1][0]) / (history[-1][1] / h)
        x = x + noise(now, then) * then * math.sqrt(-math.expm1(-2 * h))
        history.append((denoised, h))
    return x


def dpmpp_sde(model: Denoiser, x: Array, sigmas: Array, noise: NoiseSampler) -> Array:
    """k-diffusion's sample_dpmpp_sde, eta 1, r 1/2."""

    def ancestral(now: float, then: float) -> tuple[float, float]:
        up = min(then, math.sqrt(then**2 * (now**2 - then**2) / now**2))
        return math.sqrt(then**2 - up**2), up

    for now, then in pairwise(sigmas):
        denoised = model(x, now)
        if then == 0:
            return x + (x - denoised) / now * (then - now)
        t = -math.log(now)
        s = t + 0.5 * (-math.log(then) - t)
        down, up = ancestral(now, math.exp(-s))
        middle = down / now * x - math.expm1(t + math.log(down)) * denoised
        middle = middle + noise(now, math.exp(-s)) * up
        second = model(middle, math.exp(-s))
        down, up = ancestral(now, then)
        x = down / now * x - math.expm1(t + math.log(down)) * second
        x = x + noise(now, then) * up
    return x


def brownian(levels: list[float], draws: list[Array]) -> NoiseSampler:
    """Increments, of unit variance, of one Brownian motion over sigma that stops at ``levels``."""
    path, at = {levels[0]: np.zeros(SHAPE)}, levels[0]
    for level, draw in zip(levels[1:], draws, strict=False):
        path[level] = path[at] + math.sqrt(at - level) * draw
        at = level

    def between(now: float, then: float) -> Array:
        nearest = min(path, key=lambda level: abs(level - then))
        assert nearest == pytest.approx(then)
        first = min(path, key=lambda level: abs(level - now))
        return (path[nearest] - path[first]) / math.sqrt(first - nearest)

    return between


@pytest.mark.parametrize("schedule", list(SigmaSchedule))
@pytest.mark.parametrize(("steps", "image_strength"), STARTS)
@pytest.mark.parametrize(
    ("sampler", "formula"),
    [(Sampler.K_DPMPP_2M_SDE, dpmpp_2m_sde), (Sampler.K_DPMPP_3M_SDE, dpmpp_3m_sde)],
)
def test_multistep_sde_equals_k_diffusion(
    sampler: Sampler, formula: Any, steps: int, image_strength: float, schedule: SigmaSchedule
) -> None:
    sigmas = make_schedule(sampler, steps, image_strength, None, schedule).sigmas
    program = make_program(sampler, steps, image_strength, None, schedule)
    x, draws = start_and_draws(sigmas[0], len(sigmas))
    left = iter(draws)
    want = formula(denoiser, x, sigmas, lambda now, then: next(left))
    assert program.draws == len(program) - 1
    assert relative_error(run_program(program, x, draws), want) < 1e-9


@pytest.mark.parametrize("schedule", list(SigmaSchedule))
@pytest.mark.parametrize(("steps", "image_strength"), STARTS)
def test_dpmpp_sde_equals_k_diffusion_over_a_brownian_motion(
    steps: int, image_strength: float, schedule: SigmaSchedule
) -> None:
    sampler = Sampler.K_DPMPP_SDE
    sigmas = make_schedule(sampler, steps, image_strength, None, schedule).sigmas
    program = make_program(sampler, steps, image_strength, None, schedule)
    x, draws = start_and_draws(sigmas[0], 2 * len(sigmas))
    noise = brownian([row.sigma for row in program.steps], draws)
    want = dpmpp_sde(denoiser, x, sigmas, noise)
    assert program.draws == len(program) - 1
    assert relative_error(run_program(program, x, draws), want) < 1e-8


def drive_in_float64(scheduler: Any, sigmas: Array, x: Array, draws: list[Array]) -> Array:
    """Drive a scheduler of diffusers that holds unit variance over our sigmas, in float64."""
    steps = len(sigmas) - 1
    scheduler.set_timesteps(max(steps, 2))
    scheduler.num_inference_steps = steps
    scheduler.sigmas = torch.tensor(sigmas)
    scheduler.timesteps = torch.arange(steps, 0, -1)
    scheduler.set_begin_index(0)
    sample = torch.tensor(x / math.sqrt(sigmas[0] ** 2 + 1))
    for i, timestep in enumerate(scheduler.timesteps):
        in_sigma_space = sample.numpy() * math.sqrt(sigmas[i] ** 2 + 1)
        eps = torch.tensor(eps_of(in_sigma_space, float(sigmas[i])))
        noise = {"variance_noise": torch.tensor(draws[i])} if draws else {}
        sample = scheduler.step(eps, timestep, sample, **noise).prev_sample
    end: Array = sample.numpy()
    return end


@pytest.mark.parametrize("schedule", list(SigmaSchedule))
@pytest.mark.parametrize(("steps", "image_strength"), STARTS)
@pytest.mark.parametrize("sampler", [Sampler.UNIPC, Sampler.K_DPMPP_2M_SDE])
def test_program_equals_diffusers_solver(
    sampler: Sampler, steps: int, image_strength: float, schedule: SigmaSchedule
) -> None:
    sigmas = make_schedule(sampler, steps, image_strength, None, schedule).sigmas
    program = make_program(sampler, steps, image_strength, None, schedule)
    x, draws = start_and_draws(sigmas[0], len(sigmas) if sampler is not Sampler.UNIPC else 0)
    want = drive_in_float64(make_scheduler(sampler), sigmas, x, draws)
    # DPMSolverMultistepScheduler works in float32 whatever it is given.
    limit = 1e-8 if sampler is Sampler.UNIPC else 1e-5
    assert relative_error(run_program(program, x, draws), want) < limit


def test_dpmpp_sde_equals_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scheduler, with our noise in the place of the tree that the library torchsde draws."""
    stub = ModuleType("torchsde")
    monkeypatch.setitem(sys.modules, "torchsde", stub)
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    training = NoiseSchedule()
    scheduler = DPMSolverSDEScheduler(
        beta_start=training.beta_start,
        beta_end=training.beta_end,
        beta_schedule=training.beta_schedule,
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(12)
    program = make_program(Sampler.K_DPMPP_SDE, 12, 0.0)
    x, draws = start_and_draws(program.steps[0].sigma, 24)
    between = brownian([row.sigma for row in program.steps], draws)
    scheduler.noise_sampler = lambda now, then: torch.tensor(between(float(now), float(then)))
    scheduler.set_begin_index(0)
    sample = torch.tensor(x)
    for row, timestep in zip(program.steps, scheduler.timesteps, strict=True):
        assert row.timestep == pytest.approx(float(timestep), abs=1e-3)
        eps = torch.tensor(eps_of(sample.numpy(), row.sigma))
        sample = scheduler.step(eps, timestep, sample).prev_sample
    assert relative_error(run_program(program, x, draws), sample.numpy()) < 1e-5


def test_lcm_over_other_sigmas_goes_to_the_image_and_adds_noise() -> None:
    sigmas = make_schedule(Sampler.LCM, 4, 0.0, None, SigmaSchedule.SGM_UNIFORM).sigmas
    program = make_program(Sampler.LCM, 4, 0.0, None, SigmaSchedule.SGM_UNIFORM)
    x, draws = start_and_draws(sigmas[0], 3)
    got = run_program(program, x, draws)
    for i in range(4):
        x = denoiser(x, sigmas[i]) + (sigmas[i + 1] * draws[i] if i < 3 else 0)
    # The boundary scalings of a timestep of 250 and more are 1 and 0 to seven digits.
    assert relative_error(got, x) < 1e-6


def test_lcm_beyond_the_steps_of_its_distillation() -> None:
    for steps in (50, 51, 150):
        timesteps = make_schedule(Sampler.LCM, steps, 0.0).timesteps
        assert (timesteps[0], len(timesteps)) == (999, steps)


@pytest.mark.parametrize("steps", [1, 2, 5, 11, 30, 150])
def test_schedules_equal_k_diffusions_formulas(steps: int) -> None:
    training = NoiseSchedule().sigmas
    low, high = float(training[0]), float(training[-1])

    def spread(schedule: SigmaSchedule, sampler: Sampler = Sampler.K_EULER) -> Array:
        return make_schedule(sampler, steps, 0.0, None, schedule).sigmas

    def karras(count: int) -> Array:
        ramp = np.linspace(0, 1, count)
        top, bottom = high ** (1 / 7), low ** (1 / 7)
        levels: Array = (top + ramp * (bottom - top)) ** 7
        return levels

    assert spread(SigmaSchedule.KARRAS) == pytest.approx([*karras(steps), 0.0], rel=1e-12)
    without_the_lowest = [*karras(steps + 1)[:-1], 0.0]
    for sampler in (Sampler.K_DPM_2, Sampler.K_DPM_2_ANCESTRAL, Sampler.K_DPMPP_3M_SDE):
        assert spread(SigmaSchedule.KARRAS, sampler) == pytest.approx(without_the_lowest)
    exponential = np.exp(np.linspace(math.log(high), math.log(low), steps))
    assert spread(SigmaSchedule.EXPONENTIAL) == pytest.approx([*exponential, 0.0], rel=1e-12)
    places = np.linspace(999, 0, steps + 1)[:-1]
    uniform = make_schedule(Sampler.K_EULER, steps, 0.0, None, SigmaSchedule.SGM_UNIFORM)
    assert uniform.timesteps == pytest.approx(places, abs=1e-6)


@pytest.mark.parametrize("schedule", [SigmaSchedule.KARRAS, SigmaSchedule.EXPONENTIAL])
def test_schedules_equal_diffusers(schedule: SigmaSchedule) -> None:
    options = {f"use_{schedule.value.lower()}_sigmas": True}
    scheduler = diffusers.EulerDiscreteScheduler.from_config(
        make_scheduler(Sampler.K_EULER).config, **options
    )
    scheduler.set_timesteps(20)
    ours = make_schedule(Sampler.K_EULER, 20, 0.0, None, schedule)
    assert ours.sigmas == pytest.approx(scheduler.sigmas.numpy(), rel=1e-4)
    assert ours.timesteps == pytest.approx(scheduler.timesteps.numpy(), abs=0.05)


def test_align_your_steps_are_the_published_sigmas() -> None:
    published = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
    eleven = make_schedule(Sampler.K_EULER, 11, 0.0, None, SigmaSchedule.AYS).sigmas
    assert eleven == pytest.approx([*published, 0.0])
    twice = make_schedule(Sampler.K_EULER, 21, 0.0, None, SigmaSchedule.AYS).sigmas
    assert twice[:-1:2] == pytest.approx(published)
    assert twice[1] == pytest.approx(math.sqrt(14.615 * 6.475))
    assert make_schedule(Sampler.K_EULER, 1, 0.0, None, SigmaSchedule.AYS).sigmas[0] > 14


@pytest.mark.slow("properties")
@pytest.mark.parametrize("schedule", list(SigmaSchedule))
@pytest.mark.parametrize("sampler", list(Sampler))
def test_every_count_of_steps_from_every_start(sampler: Sampler, schedule: SigmaSchedule) -> None:
    """Sigmas fall to 0, coefficients are finite, and a run stays bounded."""
    counts = [1, 2, 3, 4, 7, 20, 51, ENGINE_MAX_STEPS]
    for steps in counts:
        for kept in {1, 2, (steps + 1) // 2, steps} & set(range(1, steps + 1)):
            strength = 1 - kept / steps
            levels = make_schedule(sampler, steps, strength, None, schedule)
            program = make_program(sampler, steps, strength, None, schedule)
            assert len(levels.timesteps) == kept
            assert len(program) == evaluation_count(sampler, steps, strength)
            assert (np.diff(levels.sigmas) < 0).all()
            assert (np.diff(levels.timesteps) < 0).all()
            if sampler is not Sampler.DDIM or schedule is not SigmaSchedule.AUTOMATIC:
                assert levels.sigmas[-1] == 0.0
            for row in program.steps:
                assert np.isfinite(row.mix).all()
                assert 0 <= row.timestep <= 999
                assert bool(row.mix[:, NOISE].any()) == (row.noise is not None)
            assert program.steps[-1].noise is None
            x, draws = start_and_draws(levels.sigmas[0], program.draws)
            end = np.abs(run_program(program, x, draws)).max()
            # The denoiser's images are within 6; in few steps a second order overshoots.
            assert end < 6 if steps >= 20 and kept >= 10 else end < 100


@pytest.mark.parametrize("steps", [0, ENGINE_MAX_STEPS + 1])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"steps: {steps} is not in 1\.\.150"):
        make_program(Sampler.K_EULER, steps, 0.0)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_schedule_that_ends_above_zero_is_scaled_back(sampler: Sampler) -> None:
    program = compile_program(sampler, [10.0, 4.0, 1.0, 0.5])
    x, draws = start_and_draws(10.0, program.draws)
    assert np.isfinite(run_program(program, x, draws)).all()


@pytest.mark.parametrize("schedule", SPREAD)
def test_every_sampler_takes_every_schedule(schedule: SigmaSchedule) -> None:
    for sampler in Sampler:
        one = SAMPLER_SPECS[sampler].evaluations_per_step
        program = make_program(sampler, 10, 0.0, None, schedule)
        plain = make_program(sampler, 10, 0.0)
        assert [row.sigma for row in program.steps] != [row.sigma for row in plain.steps]
        assert len(program) == 10 * one - (one - 1)
