"""The noise schedule that a model was trained with, from a diffusers ``scheduler_config.json``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

PREDICTION_TYPES = ("epsilon", "v_prediction")
MIN_TRAIN_TIMESTEPS = 200
"""The fewest over which every sampler can spread the most steps, each at a timestep of its own."""
_LOWEST_ALPHA = 2.0**-24
"""Of the last timestep at zero terminal SNR, instead of 0: sigma is 4096 there, not infinite.
diffusers' schedulers put the same in its place."""
_LOWEST_SHARE = 1e-12
"""Of the picture's variance in what a model was trained on: less does not survive float32."""
_BEARS_ON_ALPHAS = re.compile(
    r"alpha|beta|sigma|snr|shift|flow|timestep_type|prediction|predict_epsilon"
)
_OF_SAMPLING = frozenset(
    {
        "set_alpha_to_one",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "final_sigmas_type",
        "sigma_min",
        "sigma_max",
    }
)
"""How a sampler spreads its steps and ends, which this server decides by itself."""
_NEUTRAL = {
    "timestep_type": "discrete",
    "flow_shift": 1.0,
    "time_shift_type": "exponential",
    "predict_epsilon": True,
}
"""Values of schedulers' further keys that change nothing; of others false does not."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise schedule a model was trained with (Stable Diffusion's by default).

    Raises ValueError, which begins with a field's name, for what is no such schedule.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    trained_betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise _wrong("prediction_type", self.prediction_type, _one_of(PREDICTION_TYPES))
        if type(self.num_train_timesteps) is not int or not (
            MIN_TRAIN_TIMESTEPS <= self.num_train_timesteps <= 100_000
        ):
            raise _wrong(
                "num_train_timesteps",
                self.num_train_timesteps,
                f"a whole number in {MIN_TRAIN_TIMESTEPS}..100000",
            )
        if not isinstance(self.rescale_betas_zero_snr, bool):
            raise _wrong("rescale_betas_zero_snr", self.rescale_betas_zero_snr, "true or false")
        if self.trained_betas is not None:
            if len(self.trained_betas) != self.num_train_timesteps:
                raise ValueError(
                    f"trained_betas: are {len(self.trained_betas)}, must be as many as "
                    f"num_train_timesteps, {self.num_train_timesteps}"
                )
            for beta in self.trained_betas:
                if not _is_beta(beta):
                    raise _wrong("trained_betas", beta, "a number between 0 and 1")
            if self.alphas_cumprod[-1] < _LOWEST_SHARE:
                raise ValueError("trained_betas: leave nothing of the picture long before the end")
            return
        if not isinstance(self.beta_schedule, str) or self.beta_schedule not in _BETAS:
            raise _wrong("beta_schedule", self.beta_schedule, _one_of(_BETAS))
        for name in ("beta_start", "beta_end"):
            if not _is_beta(getattr(self, name)):
                raise _wrong(name, getattr(self, name), "a number between 0 and 1")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Take what a ``scheduler_config.json`` says, and the default for the rest.

        Raises ValueError, which names key and value, also for a key that bears on the noise levels
        or the model's output and is not understood.
        """
        for key, value in config.items():
            # As they are written; a private key is a note of diffusers'.
            if key in cls.__dataclass_fields__ or key in _OF_SAMPLING or key.startswith("_"):
                continue
            if value is None or not _BEARS_ON_ALPHAS.search(key):
                continue
            if value != _NEUTRAL.get(key, False):
                raise ValueError(f"{key}: {value!r} is not understood by this server")
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        if isinstance(betas := known.get("trained_betas"), list):
            known["trained_betas"] = tuple(betas)
        elif betas is not None:
            raise _wrong("trained_betas", betas, "a list")
        if known.get("rescale_betas_zero_snr", False) is None:
            del known["rescale_betas_zero_snr"]
        return cls(**known)

    @property
    def is_diffusers_own(self) -> bool:
        """Whether every scheduler of diffusers makes these alphas from start, end and name."""
        return (
            self.trained_betas is None
            and not self.rescale_betas_zero_snr
            and self.beta_schedule in ("linear", "scaled_linear")
        )

    @cached_property
    def alphas_cumprod(self) -> Float64:
        """The share of the picture's variance at every training timestep, falling."""
        if self.trained_betas is not None:
            betas: Float64 = np.array(self.trained_betas, dtype=np.float64)
        else:
            make = _BETAS[self.beta_schedule]
            betas = make(self.beta_start, self.beta_end, self.num_train_timesteps)
        alphas: Float64 = np.cumprod(1.0 - betas, dtype=np.float64)
        if self.rescale_betas_zero_snr:
            # Lin et al. 2023, algorithm 1: the last becomes 0, the first stays.
            roots = np.sqrt(alphas)
            alphas[:] = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
            # A steep schedule brings the last but one lower still, and they have to fall.
            alphas[-1] = _LOWEST_ALPHA if alphas[-2] > _LOWEST_ALPHA else alphas[-2] / 2
        alphas.setflags(write=False)
        return alphas

    @cached_property
    def sigmas(self) -> Float64:
        """``sqrt((1 - alphas_cumprod) / alphas_cumprod)`` for every training timestep, float64."""
        alphas = self.alphas_cumprod
        sigmas: Float64 = np.sqrt((1.0 - alphas) / alphas)
        sigmas.setflags(write=False)
        return sigmas

    def timestep_at(self, sigma: float) -> float:
        """The (fractional) timestep of a noise level, interpolated in log sigma."""
        log_sigmas = np.log(self.sigmas)
        return float(np.interp(math.log(sigma), log_sigmas, np.arange(len(log_sigmas))))


def _wrong(name: str, value: object, wanted: str) -> ValueError:
    shown = repr(value)
    return ValueError(f"{name}: {shown[:80]} is not {wanted}")


def _one_of(names: Any) -> str:
    return f"one of {', '.join(names)}"


def _is_beta(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


def _by_share(share: Callable[[float], float]) -> Callable[[float, float, int], Float64]:
    """Betas that follow from the share of the picture that is to be left, of a time in 0..1."""

    def betas(_start: float, _end: float, count: int) -> Float64:
        shares = [share(i / count) for i in range(count + 1)]
        return np.array([min(1 - b / a, 0.999) for a, b in pairwise(shares)])

    return betas


def _laplace(time: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - time) * math.log(1 - 2 * abs(0.5 - time) + 1e-6)
    return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))


_BETAS: Mapping[str, Callable[[float, float, int], Float64]] = {
    "linear": lambda start, end, n: np.linspace(start, end, n),
    "scaled_linear": lambda start, end, n: np.linspace(start**0.5, end**0.5, n) ** 2,
    "squaredcos_cap_v2": _by_share(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2),
    "exp": _by_share(lambda t: math.exp(-12 * t)),
    "laplace": _by_share(_laplace),
    "sigmoid": lambda start, end, n: start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, n))),
}
"""The beta schedules of diffusers, by name: of start, end and number."""
