"""The sampler programs against diffusers, the golden trajectories, and their own invariants."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.request import CONTRACT_SAMPLERS, Sampler
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
    denoising_steps,
    make_schedule,
    make_scheduler,
)

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "k_diffusion_trajectories.json").read_text()
)["cases"]

# diffusers lacks 2S ancestral, and its LMS takes too high an order after a mid-schedule start:
# for these two the golden trajectories are the oracle. Its DPM++ SDE needs a library, and its
# solver of order 3 is not k-diffusion's: test_extra_samplers.py has formulas for these.
RIGHT_IN_DIFFUSERS = [
    s
    for s in Sampler
    if s
    not in (
        Sampler.K_DPMPP_2S_ANCESTRAL,
        Sampler.K_LMS,
        Sampler.K_DPMPP_SDE,
        Sampler.K_DPMPP_3M_SDE,
    )
]


def golden_eps(x: np.ndarray, sigma: float) -> np.ndarray:
    """The noise prediction of the golden file's closed-form denoiser."""
    denoised = (x + sigma**2 * np.tanh(x / (1 + sigma))) / (1 + sigma**2)
    return (x - denoised) / sigma


def run_program(
    program: SamplerProgram,
    x: np.ndarray,
    noise: list[np.ndarray],
    eps_of: Any = golden_eps,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Run a program in float64; give the end and slot 0 before every evaluation."""
    slots = [x.astype(np.float64)] + [np.zeros_like(x, dtype=np.float64)] * (SLOTS - 1)
    seen = []
    for row in program.steps:
        seen.append(slots[0])
        draw = noise[row.noise] if row.noise is not None else np.zeros_like(x)
        columns = np.stack([*slots, eps_of(slots[0], row.sigma), draw])
        slots = list(np.tensordot(row.mix, columns, axes=1))
    return slots[0], seen


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda c: f"{c['sampler']}-{c['steps']}-from-{c['start']}"
)
def test_table_equals_golden_trajectory(case: dict[str, Any]) -> None:
    program = compile_program(case["sampler"], case["sigmas"])
    noise = [np.array(draw) for draw in case["noise"]]
    end, seen = run_program(program, np.array(case["x_start"]), noise)
    assert len(program) == len(case["evaluations"])
    assert program.draws <= len(noise)
    for row, x, evaluation in zip(program.steps, seen, case["evaluations"], strict=True):
        assert row.sigma == pytest.approx(evaluation["sigma"], rel=1e-9)
        assert relative_error(x, np.array(evaluation["x"])) < 1e-9
    assert relative_error(end, np.array(case["x_end"])) < 1e-9


def test_golden_file_covers_the_contracts_k_samplers() -> None:
    assert {case["sampler"] for case in GOLDEN} == {
        s.value for s in CONTRACT_SAMPLERS if s.value.startswith("K_")
    }


def drive_diffusers(
    sampler: Sampler, steps: int, image_strength: float, x0: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Drive the mapped diffusers scheduler step by step, as its img2img pipeline does.

    Gives the end (latents), the start noise and the draws that a program consumes.
    """
    scheduler = make_scheduler(sampler)
    if sampler is Sampler.LCM and steps > 50:
        scheduler.set_timesteps(steps, original_inference_steps=1000)
    else:
        scheduler.set_timesteps(steps)
    begin = steps - denoising_steps(steps, image_strength)
    timesteps = scheduler.timesteps[begin * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin * scheduler.order)
    generator = torch.Generator().manual_seed(seed)
    start_noise = torch.randn(x0.shape, generator=generator)
    state = generator.get_state()
    sample = scheduler.add_noise(torch.tensor(x0), start_noise, timesteps[:1])
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    kwargs = {"generator": generator} if takes_generator else {}
    # The model sees what it would be given at this sigma, whatever the scheduler's own space.
    for timestep in timesteps:
        model_input = scheduler.scale_model_input(sample, timestep)
        sigma = np.interp(float(timestep), np.arange(1000), np.log(NoiseSchedule().sigmas))
        sigma = math.exp(sigma)
        x = model_input.double().numpy() * math.sqrt(sigma**2 + 1)
        eps = torch.tensor(golden_eps(x, sigma), dtype=torch.float32)
        sample = scheduler.step(eps, timestep, sample, **kwargs).prev_sample
    again = torch.Generator()
    again.set_state(state)
    draws = [torch.randn(x0.shape, generator=again).double().numpy() for _ in range(steps)]
    return sample.double().numpy(), start_noise.double().numpy(), draws


@pytest.mark.process
@pytest.mark.parametrize("sampler", RIGHT_IN_DIFFUSERS)
@pytest.mark.parametrize(
    "steps", [1, 2, 10, 23, 50, pytest.param(150, marks=pytest.mark.slow("properties"))]
)
@pytest.mark.parametrize("image_strength", [0.05, 0.35, 0.8, 0.95])
def test_table_equals_diffusers_scheduler(
    sampler: Sampler, steps: int, image_strength: float
) -> None:
    x0 = np.random.default_rng(7).normal(size=(1, 4, 6, 6)).astype(np.float32)
    want, noise, draws = drive_diffusers(sampler, steps, image_strength, x0, seed=steps)
    schedule = make_schedule(sampler, steps, image_strength)
    program = make_program(sampler, steps, image_strength)
    got, _ = run_program(program, x0 + schedule.sigmas[0] * noise, draws)
    assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize("steps", [10, 23, 50])
def test_lms_equals_diffusers_from_the_first_step(steps: int) -> None:
    x0 = np.random.default_rng(7).normal(size=(1, 4, 6, 6)).astype(np.float32)
    want, noise, draws = drive_diffusers(Sampler.K_LMS, steps, 0.0, x0, seed=steps)
    program = make_program(Sampler.K_LMS, steps, 0.0)
    got, _ = run_program(program, x0 + program.steps[0].sigma * noise, draws)
    assert relative_error(got, want) < 1e-5


def test_lms_finds_no_nodes_of_integration_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by each coefficient they took nine tenths of a program's time."""
    monkeypatch.setattr(np.polynomial.legendre, "leggauss", None)
    assert len(make_program(Sampler.K_LMS, 10, 0.0)) == 10


def test_2s_ancestral_takes_the_schedule_of_euler_ancestral() -> None:
    ours = make_schedule(Sampler.K_DPMPP_2S_ANCESTRAL, 17, 0.35)
    euler = make_schedule(Sampler.K_EULER_ANCESTRAL, 17, 0.35)
    assert np.array_equal(ours.sigmas, euler.sigmas)
    assert np.array_equal(ours.timesteps, euler.timesteps)


# Those whose alphas diffusers sets by other means too, and those of another prediction.
NOISE_SCHEDULES = [
    NoiseSchedule(),
    NoiseSchedule(beta_schedule="linear"),
    NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True),
]


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_schedule_is_that_of_the_samplers_own_scheduler_to_the_bit(sampler: Sampler) -> None:
    for noise_schedule in NOISE_SCHEDULES:
        own = make_scheduler(sampler, noise_schedule)
        for steps in (1, 2, 7, 30, 150):
            beyond = sampler is Sampler.LCM and steps > 50
            options = {"original_inference_steps": 1000} if beyond else {}
            own.set_timesteps(steps, **options)
            ours = make_schedule(sampler, steps, 0.0, noise_schedule)
            assert np.array_equal(ours.timesteps, own.timesteps.double().numpy()[:: own.order])
            if sampler not in (Sampler.DDIM, Sampler.DDPM, Sampler.LCM):
                sigmas = own.sigmas.double().numpy()[: own.order * steps : own.order]
                assert np.array_equal(ours.sigmas[:-1], sigmas)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_schedule_is_made_of_its_own_steps_alone(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of diffusers' schedulers first make one of all 1000 timesteps, two take long over it."""
    asked: list[int] = []
    for spec in SAMPLER_SPECS.values():
        scheduler = getattr(diffusers, spec.scheduler)

        def noted(self: Any, steps: int, *rest: Any, _set: Any = scheduler.set_timesteps) -> None:
            asked.append(steps)
            _set(self, steps, *rest)

        monkeypatch.setattr(scheduler, "set_timesteps", noted)
    make_schedule(sampler, 41, 0.35, NoiseSchedule(beta_end=0.0121))  # that nobody has asked for
    assert set(asked) == {41}


@pytest.mark.parametrize(
    ("steps", "image_strength", "kept"),
    [(10, 0.8, 2), (10, 0.95, 1), (30, 0.35, 19), (20, 0.35, 13), (50, 0.0, 50), (10, 1.0, 0)],
)
def test_denoising_steps(steps: int, image_strength: float, kept: int) -> None:
    assert denoising_steps(steps, image_strength) == kept


def test_k_samplers_start_from_the_full_noise_whatever_a_folder_says() -> None:
    for sampler in Sampler:
        first = make_schedule(sampler, 20, 0.0).sigmas[0]
        expected = 11.0283 if sampler in (Sampler.DDIM, Sampler.DDPM) else 14.6146
        assert first == pytest.approx(expected, rel=1e-4), sampler


def test_midpoint_timesteps_are_interpolated_in_log_sigma() -> None:
    noise_schedule = NoiseSchedule()
    program = make_program(Sampler.K_DPM_2, 10, 0.35)
    middle = program.steps[1]
    low = math.floor(middle.timestep)
    part = middle.timestep - low
    logs = np.log(noise_schedule.sigmas)
    assert 0 < part < 1
    assert logs[low] * (1 - part) + logs[low + 1] * part == pytest.approx(math.log(middle.sigma))


def test_v_prediction_is_folded_in() -> None:
    """A model that says v, run over the folded program, ends where eps over the plain one does."""
    x0 = np.random.default_rng(3).normal(size=16)
    v_schedule = NoiseSchedule(prediction_type="v_prediction")
    draws = list(np.random.default_rng(4).normal(size=(60, 16)))

    def golden_v(x: np.ndarray, sigma: float) -> np.ndarray:
        eps = golden_eps(x, sigma)
        return (eps - sigma * x / (sigma**2 + 1)) * math.sqrt(sigma**2 + 1)

    for sampler in Sampler:
        plain = make_program(sampler, 12, 0.35)
        folded = make_program(sampler, 12, 0.35, v_schedule)
        start = x0 + plain.steps[0].sigma * draws[-1]
        want, _ = run_program(plain, start, draws)
        got, _ = run_program(folded, start, draws, golden_v)
        assert relative_error(got, want) < 1e-12, sampler
        a, b = folded.steps[0].x0
        denoised = a * start + b * golden_v(start, folded.steps[0].sigma)
        sigma = plain.steps[0].sigma
        assert denoised == pytest.approx(start - sigma * golden_eps(start, sigma)), sampler


@pytest.mark.parametrize("sampler", list(Sampler))
def test_slots_in_use(sampler: Sampler) -> None:
    expected = {
        **dict.fromkeys(Sampler, 2),
        Sampler.K_EULER: 1,
        Sampler.K_EULER_ANCESTRAL: 1,
        Sampler.DDIM: 1,
        Sampler.DDPM: 1,
        Sampler.LCM: 1,
        Sampler.K_DPMPP_3M_SDE: 3,
        Sampler.K_LMS: 4,
        Sampler.UNIPC: 4,
    }
    assert make_program(sampler, 20, 0.35).slots == expected[sampler]


@given(
    sampler=st.sampled_from(list(Sampler)),
    steps=st.integers(10, 50),
    image_strength=st.floats(0.0, 0.999),
)
def test_invariants(sampler: Sampler, steps: int, image_strength: float) -> None:
    kept = denoising_steps(steps, image_strength)
    schedule = make_schedule(sampler, steps, image_strength)
    program = make_program(sampler, steps, image_strength)
    per_step = SAMPLER_SPECS[sampler].evaluations_per_step
    assert 1 <= kept <= steps
    assert abs(kept - steps * (1 - image_strength)) < 1 + 1e-5
    assert len(program) == (kept if per_step == 1 else 2 * kept - 1)
    assert len(program) == evaluation_count(sampler, steps, image_strength)
    assert (np.diff(schedule.sigmas) < 0).all()
    assert (np.diff(schedule.timesteps) < 0).all()
    assert [row.noise for row in program.steps if row.noise is not None] == list(
        range(program.draws)
    )
    assert program.steps[-1].noise is None
    for row in program.steps:
        assert np.isfinite(row.mix).all()
        assert np.isfinite([row.timestep, row.c_in, *row.x0]).all()
        assert 0 <= row.timestep <= 999
        assert bool(row.mix[:, NOISE].any()) == (row.noise is not None)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_evaluations_know_the_step_that_was_asked_for(sampler: Sampler) -> None:
    program = make_program(sampler, 30, 0.35)
    each = SAMPLER_SPECS[sampler].evaluations_per_step
    assert [row.step for row in program.steps] == [
        s for s in range(12, 30) for _ in range(each)
    ] + [30]
    assert program.last_step == 30
    assert program.steps_done(0) == 11
    assert program.steps_done(each) == 12
    assert program.steps_done(len(program) - 1) == 29
    assert program.steps_done(len(program)) == 30
    assert make_program(sampler, 10, 0.0).steps_done(0) == 0


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0], [math.nan, 0.0], [1.0, -1.0], [1.0, 1.0]])
def test_bad_sigmas_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="sigmas"):
        compile_program(Sampler.K_EULER, sigmas)
