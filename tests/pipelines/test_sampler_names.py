"""Samplers and schedules by the names of other protocols' clients."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.request import Sampler, SigmaSchedule
from pipelines.samplers.names import (
    A1111_ALIASES,
    A1111_AUTOMATIC,
    A1111_LABELS,
    SCHEDULE_LABELS,
    UNSUPPORTED,
    SamplerChoice,
    UnknownSampler,
    sampler_by_name,
)

AUTOMATIC, KARRAS = SigmaSchedule.AUTOMATIC, SigmaSchedule.KARRAS
EXPONENTIAL, SGM_UNIFORM = SigmaSchedule.EXPONENTIAL, SigmaSchedule.SGM_UNIFORM


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", Sampler.K_DPMPP_2M, KARRAS),
        ("DPM++ 2M", Sampler.K_DPMPP_2M, AUTOMATIC),
        ("k_dpmpp_2m_ka", Sampler.K_DPMPP_2M, KARRAS),
        ("dpmpp_2m_k", Sampler.K_DPMPP_2M, KARRAS),
        ("dpm++2m", Sampler.K_DPMPP_2M, AUTOMATIC),
        ("DPM++ SDE Karras", Sampler.K_DPMPP_SDE, KARRAS),
        ("DPM++ 2M SDE Exponential", Sampler.K_DPMPP_2M_SDE, EXPONENTIAL),
        ("k_dpmpp_2m_sde_exp", Sampler.K_DPMPP_2M_SDE, EXPONENTIAL),
        ("DPM++ 3M SDE Karras", Sampler.K_DPMPP_3M_SDE, KARRAS),
        ("DPM++ 2S a", Sampler.K_DPMPP_2S_ANCESTRAL, AUTOMATIC),
        ("dpmpp_2s_ancestral", Sampler.K_DPMPP_2S_ANCESTRAL, AUTOMATIC),
        ("k_euler_a", Sampler.K_EULER_ANCESTRAL, AUTOMATIC),
        ("euler_a", Sampler.K_EULER_ANCESTRAL, AUTOMATIC),
        ("euler_ancestral", Sampler.K_EULER_ANCESTRAL, AUTOMATIC),
        ("Euler a SGM Uniform", Sampler.K_EULER_ANCESTRAL, SGM_UNIFORM),
        ("Euler", Sampler.K_EULER, AUTOMATIC),
        ("LMS Karras", Sampler.K_LMS, KARRAS),
        ("DPM2 a Karras", Sampler.K_DPM_2_ANCESTRAL, KARRAS),
        ("k_dpm_2_a_ka", Sampler.K_DPM_2_ANCESTRAL, KARRAS),
        ("Heun", Sampler.K_HEUN, AUTOMATIC),
        ("DDIM", Sampler.DDIM, AUTOMATIC),
        ("UniPC", Sampler.UNIPC, AUTOMATIC),
        ("uni_pc_bh2", Sampler.UNIPC, AUTOMATIC),
        ("LCM Align Your Steps", Sampler.LCM, SigmaSchedule.AYS),
        ("EulerDiscreteScheduler", Sampler.K_EULER, AUTOMATIC),
        ("DPMSolverMultistepScheduler", Sampler.K_DPMPP_2M, AUTOMATIC),
        ("KDPM2AncestralDiscreteScheduler", Sampler.K_DPM_2_ANCESTRAL, AUTOMATIC),
        ("K_DPM_2", Sampler.K_DPM_2, AUTOMATIC),
    ],
)
def test_names(name: str, sampler: Sampler, schedule: SigmaSchedule) -> None:
    assert sampler_by_name(name) == SamplerChoice(sampler, schedule)
    assert sampler_by_name(f" {name.upper()}\n", "  ") == SamplerChoice(sampler, schedule)


def test_every_sampler_has_names_that_lead_back_to_it() -> None:
    assert set(A1111_LABELS) == set(A1111_ALIASES) == set(Sampler)
    for sampler, label in A1111_LABELS.items():
        for name in (label, sampler.value, *A1111_ALIASES[sampler]):
            assert sampler_by_name(name) == SamplerChoice(sampler)
            for schedule, behind in SCHEDULE_LABELS.items():
                want = SamplerChoice(sampler, schedule)
                if schedule is AUTOMATIC:
                    want = SamplerChoice(sampler, A1111_AUTOMATIC.get(sampler, AUTOMATIC))
                assert sampler_by_name(name, behind) == want
                assert sampler_by_name(f"{name} {behind}") == want


@pytest.mark.parametrize("scheduler", ["Automatic", "automatic", "AUTOMATIC"])
def test_automatic_is_a1111s_choice(scheduler: str) -> None:
    def chosen(name: str) -> SigmaSchedule:
        return sampler_by_name(name, scheduler).schedule

    assert chosen("DPM++ 2M") is chosen("DPM2 a") is KARRAS
    assert chosen("DPM++ 3M SDE") is EXPONENTIAL
    assert chosen("Euler a") is chosen("LMS") is AUTOMATIC
    assert chosen("DPM++ 2M Exponential") is EXPONENTIAL


def test_a_scheduler_behind_the_name_goes_before_the_other() -> None:
    assert sampler_by_name("Euler Karras", "Exponential").schedule is KARRAS
    assert sampler_by_name("DPM++ 2M", "Uniform").schedule is AUTOMATIC
    assert sampler_by_name("DPM++ 2M", "align_your_steps").schedule is SigmaSchedule.AYS


@pytest.mark.parametrize(
    ("name", "near"),
    [("Eulr a", "Euler a"), ("DPM+ 2M Karas", "DPM++ 2M"), ("unipcs", "UniPC"), ("16", None)],
)
def test_an_unknown_sampler_is_told_what_is_near(name: str, near: str | None) -> None:
    with pytest.raises(UnknownSampler) as caught:
        sampler_by_name(name)
    assert (caught.value.field, caught.value.name) == ("sampler", name)
    assert repr(name) in str(caught.value)
    assert near is None or (near in caught.value.near and near in str(caught.value))


def test_an_unknown_scheduler_is_told_what_is_near() -> None:
    with pytest.raises(UnknownSampler, match=r"scheduler 'Karas' .*near it: Karras") as caught:
        sampler_by_name("Euler", "Karas")
    assert caught.value.field == "scheduler"
    with pytest.raises(UnknownSampler, match=r"scheduler 'Beta' .*the schedules are Automatic"):
        sampler_by_name("Euler", "Beta")


@pytest.mark.parametrize("name", [*UNSUPPORTED, "dpm_ad", "DPM fast Karras", "PNDMScheduler"])
def test_an_unsupported_sampler_says_why(name: str) -> None:
    with pytest.raises(UnknownSampler) as caught:
        sampler_by_name(name)
    assert caught.value.reason in UNSUPPORTED.values()
    assert str(caught.value) == f"sampler {name!r} is not supported: {caught.value.reason}"


def test_a_very_long_name_is_cut_in_the_message() -> None:
    with pytest.raises(UnknownSampler) as caught:
        sampler_by_name("é" * 100_000, "K" * 100_000)
    assert len(str(caught.value)) < 120


@given(st.text(max_size=30), st.none() | st.text(max_size=30))
def test_any_text_is_a_choice_or_an_unknown_sampler(name: str, scheduler: str | None) -> None:
    try:
        assert isinstance(sampler_by_name(name, scheduler), SamplerChoice)
    except UnknownSampler as error:
        assert error.field in ("sampler", "scheduler")


def test_names_need_no_torch() -> None:
    code = (
        "import sys, pipelines.samplers.names; "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
