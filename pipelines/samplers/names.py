"""Samplers and schedules by the names that clients of other protocols send.

Data and a look-up, without torch: A1111's labels and aliases, with a schedule behind them or not,
ComfyUI's names, diffusers' classes, and the contract's own names. Letter case, blanks, dashes and
underscores do not matter, and neither does a leading ``k_``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.request import Sampler, SigmaSchedule

_SHOWN = 60
_NEAR = 3


@dataclass(frozen=True)
class SamplerChoice:
    """What a client's sampler and scheduler names mean."""

    sampler: Sampler
    schedule: SigmaSchedule = SigmaSchedule.AUTOMATIC


class UnknownSampler(ValueError):
    """No sampler or schedule has the name.

    ``field`` is "sampler" or "scheduler", ``name`` what was sent, ``near`` labels that resemble
    it, ``reason`` why it cannot be served where it is known.
    """

    def __init__(
        self, field: str, name: str, *, near: tuple[str, ...] = (), reason: str | None = None
    ) -> None:
        self.field, self.name, self.near, self.reason = field, name, near, reason
        shown = name if len(name) <= _SHOWN else name[:_SHOWN] + "..."
        text = f"{field} {shown!r} is not supported"
        if reason:
            text += f": {reason}"
        elif near:
            text += f"; near it: {', '.join(near)}"
        super().__init__(text)


A1111_LABELS: Mapping[Sampler, str] = {
    Sampler.K_DPMPP_2M: "DPM++ 2M",
    Sampler.K_DPMPP_SDE: "DPM++ SDE",
    Sampler.K_DPMPP_2M_SDE: "DPM++ 2M SDE",
    Sampler.K_DPMPP_2S_ANCESTRAL: "DPM++ 2S a",
    Sampler.K_DPMPP_3M_SDE: "DPM++ 3M SDE",
    Sampler.K_EULER_ANCESTRAL: "Euler a",
    Sampler.K_EULER: "Euler",
    Sampler.K_LMS: "LMS",
    Sampler.K_HEUN: "Heun",
    Sampler.K_DPM_2: "DPM2",
    Sampler.K_DPM_2_ANCESTRAL: "DPM2 a",
    Sampler.DDIM: "DDIM",
    Sampler.DDPM: "DDPM",
    Sampler.UNIPC: "UniPC",
    Sampler.LCM: "LCM",
}
"""Every sampler by A1111's label, in A1111's order (which has no DDPM)."""

A1111_ALIASES: Mapping[Sampler, tuple[str, ...]] = {
    Sampler.K_DPMPP_2M: ("k_dpmpp_2m",),
    Sampler.K_DPMPP_SDE: ("k_dpmpp_sde",),
    Sampler.K_DPMPP_2M_SDE: ("k_dpmpp_2m_sde",),
    Sampler.K_DPMPP_2S_ANCESTRAL: ("k_dpmpp_2s_a",),
    Sampler.K_DPMPP_3M_SDE: ("k_dpmpp_3m_sde",),
    Sampler.K_EULER_ANCESTRAL: ("k_euler_a", "k_euler_ancestral"),
    Sampler.K_EULER: ("k_euler",),
    Sampler.K_LMS: ("k_lms",),
    Sampler.K_HEUN: ("k_heun",),
    Sampler.K_DPM_2: ("k_dpm_2",),
    Sampler.K_DPM_2_ANCESTRAL: ("k_dpm_2_a",),
    Sampler.DDIM: ("ddim",),
    Sampler.DDPM: ("ddpm",),
    Sampler.UNIPC: ("unipc",),
    Sampler.LCM: ("k_lcm",),
}

SCHEDULE_LABELS: Mapping[SigmaSchedule, str] = {
    SigmaSchedule.AUTOMATIC: "Automatic",
    SigmaSchedule.KARRAS: "Karras",
    SigmaSchedule.EXPONENTIAL: "Exponential",
    SigmaSchedule.SGM_UNIFORM: "SGM Uniform",
    SigmaSchedule.AYS: "Align Your Steps",
}
"""Every schedule by A1111's label. AUTOMATIC is also what A1111 calls Uniform."""

A1111_AUTOMATIC: Mapping[Sampler, SigmaSchedule] = {
    Sampler.K_DPMPP_2M: SigmaSchedule.KARRAS,
    Sampler.K_DPMPP_SDE: SigmaSchedule.KARRAS,
    Sampler.K_DPMPP_2S_ANCESTRAL: SigmaSchedule.KARRAS,
    Sampler.K_DPM_2: SigmaSchedule.KARRAS,
    Sampler.K_DPM_2_ANCESTRAL: SigmaSchedule.KARRAS,
    Sampler.K_DPMPP_2M_SDE: SigmaSchedule.EXPONENTIAL,
    Sampler.K_DPMPP_3M_SDE: SigmaSchedule.EXPONENTIAL,
}
"""What A1111's scheduler "Automatic" means by sampler; AUTOMATIC for those that are not here."""

_OTHER_SAMPLER_NAMES: Mapping[Sampler, tuple[str, ...]] = {
    Sampler.K_DPMPP_2M: ("DPMSolverMultistepScheduler", "DPMSolverMultistep", "DPM++"),
    Sampler.K_DPMPP_SDE: ("DPMSolverSDEScheduler",),
    Sampler.K_DPMPP_2S_ANCESTRAL: ("DPM++ 2S",),
    Sampler.K_EULER_ANCESTRAL: ("EulerAncestralDiscreteScheduler",),
    Sampler.K_EULER: ("EulerDiscreteScheduler",),
    Sampler.K_LMS: ("LMSDiscreteScheduler",),
    Sampler.K_HEUN: ("HeunDiscreteScheduler",),
    Sampler.K_DPM_2: ("KDPM2DiscreteScheduler",),
    Sampler.K_DPM_2_ANCESTRAL: ("KDPM2AncestralDiscreteScheduler",),
    Sampler.DDIM: ("DDIMScheduler",),
    Sampler.DDPM: ("DDPMScheduler",),
    Sampler.UNIPC: ("UniPCMultistepScheduler", "uni_pc_bh2"),
    Sampler.LCM: ("LCMScheduler",),
}

_SCHEDULE_NAMES: Mapping[SigmaSchedule, tuple[str, ...]] = {
    SigmaSchedule.AUTOMATIC: ("Automatic", "Uniform", "Normal", "Default", "Discrete"),
    SigmaSchedule.KARRAS: ("Karras",),
    # Polyexponential with rho 1, which is A1111's, is exponential.
    SigmaSchedule.EXPONENTIAL: ("Exponential", "Polyexponential"),
    SigmaSchedule.SGM_UNIFORM: ("SGM Uniform",),
    SigmaSchedule.AYS: ("Align Your Steps", "AYS"),
}
_SUFFIXES: Mapping[SigmaSchedule, tuple[str, ...]] = {
    SigmaSchedule.KARRAS: ("ka", "k"),
    SigmaSchedule.EXPONENTIAL: ("exp",),
}
"""Short forms that stand behind a sampler's name alone: ``k_dpmpp_2m_ka``, ``dpmpp_2m_k``."""

_APART = "it needs the unconditional output apart from the guided one"

UNSUPPORTED: Mapping[str, str] = {
    "DPM adaptive": "it chooses its noise levels, and how many, while it runs",
    "DPM fast": "it lays its own noise levels, in thirds of the evaluations, and takes no schedule",
    "Restart": "it goes back to higher noise levels, so it evaluates more often than its steps say",
    "DDIM CFG++": _APART,
    "Euler CFG++": _APART,
    "Euler a CFG++": _APART,
    "DPM++ 2M SDE Heun": "it is not built; DPM++ 2M SDE is near it",
    "DPM++ 2M v2": "it is not built; DPM++ 2M is near it",
    "DPM-Solver singlestep": "it is not built; DPM++ 2S a is near it",
    "DEIS": "it is not built; DPM++ 2M is near it",
    "PLMS": "it is not built; LMS is near it",
    "PNDM": "it is not built; LMS is near it",
    "IPNDM": "it is not built; LMS is near it",
    "IPNDM_V": "it is not built; LMS is near it",
    "HeunPP2": "it is not built; Heun is near it",
    "SA-Solver": "it is not built; UniPC is near it",
    "TCD": "it is not built; LCM is near it",
}
"""Samplers that cannot be served, by their label, and why."""

_UNSUPPORTED_NAMES: Mapping[str, tuple[str, ...]] = {
    "DPM adaptive": ("dpm_ad",),
    "PNDM": ("PNDMScheduler",),
    "IPNDM": ("IPNDMScheduler",),
    "DEIS": ("DEISMultistepScheduler", "deis_multistep"),
    "SA-Solver": ("SASolverScheduler",),
    "DPM++ 2M v2": ("dpm++2mv2",),
    "DPM-Solver singlestep": ("DPMSolverSinglestepScheduler",),
    "DDIM CFG++": ("ddim_cfgpp", "ddim_cfg_pp"),
    "Euler CFG++": ("euler_cfg_pp",),
    "Euler a CFG++": ("euler_ancestral_cfg_pp",),
    "TCD": ("TCDScheduler",),
}

_UNSUPPORTED_SCHEDULES: Mapping[str, str] = {
    name: f"the schedules are {', '.join(SCHEDULE_LABELS.values())} and Uniform"
    for name in ("Simple", "Beta", "DDIM", "KL Optimal", "Turbo", "Karras Exponential")
}


def _key(text: str) -> str:
    """`DPM++ 2M`, `dpmpp_2m` and `dpm++2m` are one key, as are `k_euler_a` and `K Euler A`."""
    return "".join(letter for letter in text.casefold().replace("+", "p") if letter.isalnum())


def _keys_of(names: Mapping[SigmaSchedule, Iterable[str]]) -> dict[str, SigmaSchedule]:
    return {_key(name): schedule for schedule, known in names.items() for name in known}


def _sampler_keys() -> dict[str, Sampler]:
    keys = {}
    for sampler, label in A1111_LABELS.items():
        others = _OTHER_SAMPLER_NAMES.get(sampler, ())
        names = (label, sampler.value, *A1111_ALIASES[sampler], *others)
        keys.update(
            {key: sampler for name in names for key in (_key(name), _key(name).removeprefix("k"))}
        )
    return keys


_SAMPLERS = _sampler_keys()
_SCHEDULES = _keys_of(_SCHEDULE_NAMES)
_ENDINGS = {**_SCHEDULES, **_keys_of(_SUFFIXES)}
_REASONS = {
    _key(name): reason
    for label, reason in UNSUPPORTED.items()
    for name in (label, *_UNSUPPORTED_NAMES.get(label, ()))
}
_SCHEDULE_REASONS = {_key(name): reason for name, reason in _UNSUPPORTED_SCHEDULES.items()}


def sampler_by_name(text: str, scheduler_text: str | None = None) -> SamplerChoice:
    """Return the sampler and the schedule that a client names.

    A schedule behind the sampler's name ("DPM++ 2M Karras") goes before ``scheduler_text``, as in
    A1111. The scheduler "Automatic" is A1111's own choice (`A1111_AUTOMATIC`); where none is named,
    None or blank, it is the sampler's AUTOMATIC. Raises UnknownSampler.
    """
    sampler, behind = _split(text)
    named = _schedule_by_name(scheduler_text)
    schedule, name = behind or named
    if name == _key("Automatic"):
        schedule = A1111_AUTOMATIC.get(sampler, SigmaSchedule.AUTOMATIC)
    return SamplerChoice(sampler, schedule)


_Named = tuple[SigmaSchedule, str]
"""A schedule, and the key of the name by which it was asked for."""


def _split(text: str) -> tuple[Sampler, _Named | None]:
    key = _key(text)
    if (sampler := _find(key)) is not None:
        return sampler, None
    for ending, schedule in _ENDINGS.items():
        if key.endswith(ending) and (sampler := _find(key.removesuffix(ending))) is not None:
            return sampler, (schedule, ending)
    raise _unknown_sampler(text, key)


def _find(key: str) -> Sampler | None:
    return _SAMPLERS.get(key) or _SAMPLERS.get(key.removeprefix("k"))


def _unknown_sampler(text: str, key: str) -> UnknownSampler:
    bare = [key, *(key.removesuffix(ending) for ending in _ENDINGS if key.endswith(ending))]
    for candidate in bare:
        for name in (candidate, candidate.removeprefix("k")):
            if name in _REASONS:
                return UnknownSampler("sampler", text, reason=_REASONS[name])
    close = difflib.get_close_matches(key[:_SHOWN], _SAMPLERS, n=2 * _NEAR, cutoff=0.5)
    near = tuple(dict.fromkeys(A1111_LABELS[_SAMPLERS[match]] for match in close))[:_NEAR]
    return UnknownSampler("sampler", text, near=near)


def _schedule_by_name(text: str | None) -> _Named:
    key = _key(text or "")
    if not key:
        return SigmaSchedule.AUTOMATIC, ""
    if key in _SCHEDULES:
        return _SCHEDULES[key], key
    if key in _SCHEDULE_REASONS:
        raise UnknownSampler("scheduler", text or "", reason=_SCHEDULE_REASONS[key])
    close = difflib.get_close_matches(key[:_SHOWN], _SCHEDULES, n=2 * _NEAR, cutoff=0.5)
    near = tuple(dict.fromkeys(SCHEDULE_LABELS[_SCHEDULES[match]] for match in close))[:_NEAR]
    raise UnknownSampler("scheduler", text or "", near=near)
