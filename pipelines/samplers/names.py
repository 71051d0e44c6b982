"""The names that other clients have for samplers and schedules."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from pipelines.request import Sampler, SigmaSchedule

LABELS = {
    Sampler.K_DPMPP_2M: "DPM++ 2M",
    Sampler.K_EULER_ANCESTRAL: "Euler a",
    Sampler.K_EULER: "Euler",
    Sampler.K_LMS: "LMS",
    Sampler.K_HEUN: "Heun",
    Sampler.K_DPM_2: "DPM2",
    Sampler.K_DPM_2_ANCESTRAL: "DPM2 a",
    Sampler.K_DPMPP_2S_ANCESTRAL: "DPM++ 2S a",
    Sampler.DDIM: "DDIM",
    Sampler.DDPM: "DDPM",
    Sampler.K_DPMPP_2M_SDE: "DPM++ 2M SDE",
    Sampler.K_DPMPP_SDE: "DPM++ SDE",
    Sampler.K_DPMPP_3M_SDE: "DPM++ 3M SDE",
    Sampler.UNIPC: "UniPC",
    Sampler.LCM: "LCM",
}
"""A1111's labels; its first is what clients choose who choose none."""

_ALIASES = {
    Sampler.K_DPMPP_2M: ("k_dpmpp_2m", "dpmpp_2m"),
    Sampler.K_EULER_ANCESTRAL: ("k_euler_a", "k_euler_ancestral", "euler_a", "euler_ancestral"),
    Sampler.K_EULER: ("k_euler", "euler"),
    Sampler.K_LMS: ("k_lms", "lms"),
    Sampler.K_HEUN: ("k_heun", "heun"),
    Sampler.K_DPM_2: ("k_dpm_2", "dpm2", "dpm_2"),
    Sampler.K_DPM_2_ANCESTRAL: ("k_dpm_2_a", "k_dpm_2_ancestral", "dpm2_a", "dpm_2_ancestral"),
    Sampler.K_DPMPP_2S_ANCESTRAL: ("k_dpmpp_2s_a", "k_dpmpp_2s_ancestral", "dpmpp_2s_a"),
    Sampler.DDIM: ("ddim",),
    Sampler.DDPM: ("ddpm",),
    Sampler.K_DPMPP_2M_SDE: ("k_dpmpp_2m_sde", "dpmpp_2m_sde"),
    Sampler.K_DPMPP_SDE: ("k_dpmpp_sde", "dpmpp_sde"),
    Sampler.K_DPMPP_3M_SDE: ("k_dpmpp_3m_sde", "dpmpp_3m_sde"),
    Sampler.UNIPC: ("unipc",),
    Sampler.LCM: ("lcm",),
}
AUTOMATIC = {
    Sampler.K_DPMPP_2M: SigmaSchedule.KARRAS,
    Sampler.K_DPMPP_SDE: SigmaSchedule.KARRAS,
    Sampler.K_DPMPP_2S_ANCESTRAL: SigmaSchedule.KARRAS,
    Sampler.K_DPM_2: SigmaSchedule.KARRAS,
    Sampler.K_DPM_2_ANCESTRAL: SigmaSchedule.KARRAS,
    Sampler.K_DPMPP_2M_SDE: SigmaSchedule.EXPONENTIAL,
    Sampler.K_DPMPP_3M_SDE: SigmaSchedule.EXPONENTIAL,
}
"""What A1111 chooses for a sampler where nobody does; the others' own (its `sd_samplers`)."""
UNSUPPORTED = {
    "dpm fast": "its step sizes are not known before it runs",
    "dpm adaptive": "its step sizes are not known before it runs",
    "restart": "it goes back to noise in the middle of its steps",
    "plms": "DPM++ 2M has taken its place",
    "heun++": "its weights depend on three evaluations of a step",
    "ddim cfg++": "it needs both halves of the guidance apart",
}
"""Samplers of other programs that are no linear program of steps here, and why."""
_SCHEDULES = {
    SigmaSchedule.AUTOMATIC: "Automatic",
    SigmaSchedule.KARRAS: "Karras",
    SigmaSchedule.EXPONENTIAL: "Exponential",
    SigmaSchedule.SGM_UNIFORM: "SGM Uniform",
    SigmaSchedule.AYS: "Align Your Steps",
}


_PLAIN = ("uniform", "normal", "simple", "discrete")
"""Schedules of other programs that are the samplers' own way here."""


class UnknownSampler(ValueError):
    """The name is no sampler's or schedule's; the message says which names are near."""


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler and how its noise levels are spaced."""

    sampler: Sampler
    schedule: SigmaSchedule = SigmaSchedule.AUTOMATIC


def _folded(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").split())


_BY_NAME = {
    _folded(name): sampler
    for sampler, label in LABELS.items()
    for name in (label, sampler.value, *_ALIASES[sampler])
}
_SCHEDULE_BY_NAME = {
    _folded(name): schedule
    for schedule, label in _SCHEDULES.items()
    for name in (label, schedule.value)
}


def sampler_by_name(text: str, scheduler_text: str | None = None) -> SamplerChoice:
    """Return the sampler of a name, with a schedule's name behind it or beside it, by any case.

    A ``scheduler_text`` of "Automatic" is A1111's choice for the sampler; None is the sampler's own
    way. Raises UnknownSampler.
    """
    name, schedule = _folded(text), SigmaSchedule.AUTOMATIC
    if name in UNSUPPORTED:
        raise UnknownSampler(f"{text[:60]} is not supported: {UNSUPPORTED[name]}")
    for ending, found in _SCHEDULE_BY_NAME.items():
        if name.endswith(f" {ending}") and name not in _BY_NAME:
            name, schedule = name.removesuffix(f" {ending}"), found
            break
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, 3, 0.5)
        labels = dict.fromkeys(LABELS[_BY_NAME[one]] for one in near) or LABELS.values()
        raise UnknownSampler(f"{text[:60]} is no sampler; there are {', '.join(labels)}")
    plain = scheduler_text is not None and _folded(scheduler_text) in _PLAIN
    if scheduler_text and not plain and _folded(scheduler_text) != "automatic":
        if _folded(scheduler_text) not in _SCHEDULE_BY_NAME:
            raise UnknownSampler(
                f"{scheduler_text[:60]} is no scheduler; there are {', '.join(_SCHEDULES.values())}"
            )
        schedule = _SCHEDULE_BY_NAME[_folded(scheduler_text)]
    sampler = _BY_NAME[name]
    if scheduler_text is not None and not plain and schedule is SigmaSchedule.AUTOMATIC:
        schedule = AUTOMATIC.get(sampler, schedule)
    return SamplerChoice(sampler, schedule)


def sampler_label(sampler: Sampler) -> str:
    """Return A1111's label."""
    return LABELS[sampler]


def schedule_label(schedule: SigmaSchedule) -> str:
    """Return A1111's label."""
    return _SCHEDULES[schedule]


def sampler_list() -> list[tuple[str, tuple[str, ...]]]:
    """Return A1111's labels and their aliases."""
    return [(label, _ALIASES[sampler]) for sampler, label in LABELS.items()]


def schedule_list() -> list[tuple[str, str]]:
    """Return A1111's names of schedules and their labels."""
    return [(schedule.value.lower(), label) for schedule, label in _SCHEDULES.items()]
