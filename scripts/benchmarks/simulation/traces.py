"""Requests that people might send: when they come and what they ask for. Seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.request import Sampler
from pipelines.scheduler.batching import GroupKey, guidance_rows
from server.images.fit import fit_size

_TEXT_TOKENS = 77
_TWO_STAGE = (
    Sampler.K_DPMPP_2S_ANCESTRAL,
    Sampler.K_DPM_2,
    Sampler.K_DPM_2_ANCESTRAL,
    Sampler.K_HEUN,
    Sampler.K_DPMPP_SDE,
)


@dataclass(frozen=True)
class Arrival:
    """One request of a trace: ``at`` in seconds, and what it costs the device.

    ``recipe`` is what request-level batching must find equal beside the size.
    """

    ident: int
    at: float
    key: GroupKey
    rows: int
    evaluations: int
    recipe: tuple[Sampler, int, int, float]


# (weight, width, height) of the pictures people hold, upright; half are turned on their side.
_PICTURES: tuple[tuple[float, int, int], ...] = (
    (6, 3024, 4032),  # phone, 4:3
    (3, 2160, 3840),  # phone, 16:9
    (2, 1080, 2400),  # screenshot, 20:9
    (2, 1179, 2556),
    (3, 4000, 6000),  # camera, 3:2
    (2, 3000, 3000),  # square crop
    (4, 1080, 1080),  # from a social network
    (4, 1080, 1350),
    (3, 1080, 1920),
    (4, 768, 1024),
    (4, 600, 800),
    (4, 480, 640),
    (4, 400, 600),
    (3, 720, 1280),
    (3, 500, 750),
    (2, 300, 451),
    (2, 640, 960),
    (2, 200, 200),
    (2, 850, 1100),
)
_NAMED = ((30, 512, 512), (15, 768, 768), (10, 512, 768))
"""Sizes that a caller asks for by name."""

_SAMPLERS = (
    (50, Sampler.K_DPMPP_2M),
    (12, Sampler.K_EULER),
    (12, Sampler.K_EULER_ANCESTRAL),
    (6, Sampler.DDIM),
    (4, Sampler.K_HEUN),
    (4, Sampler.K_DPMPP_2S_ANCESTRAL),
    (4, Sampler.K_LMS),
    (3, Sampler.K_DPM_2),
    (3, Sampler.K_DPM_2_ANCESTRAL),
    (2, Sampler.DDPM),
)
_STEPS = ((10, 15), (25, 20), (10, 25), (40, 30), (5, 40), (10, 50))
_STRENGTHS = ((50, 0.35), (10, 0.2), (15, 0.5), (10, 0.6), (10, 0.75), (5, 0.0))
_CFG_SCALES = ((60, 7.0), (15, 7.5), (10, 5.0), (5, 12.0), (10, 1.0))


def evaluations(sampler: Sampler, steps: int, image_strength: float) -> int:
    """U-Net evaluations of a request: the length of its table, without compiling it (no torch).

    The last step of a two-stage sampler ends at sigma 0 and takes one.
    """
    kept = min(steps, max(1, math.floor(steps * (1.0 - image_strength) + 1e-6)))
    return 2 * kept - 1 if sampler in _TWO_STAGE else kept


Choices = Sequence[tuple[Any, ...]]


def _pick(rng: random.Random, choices: Choices) -> tuple[Any, ...]:
    """One of ``choices``, whose first items are their weights; without its weight."""
    return rng.choices(choices, [choice[0] for choice in choices])[0][1:]


def _own_size(rng: random.Random) -> tuple[int, int]:
    """Width and height that the server makes from somebody's picture, by its own rule."""
    width, height = _pick(rng, _PICTURES)
    if rng.random() < 0.5:
        width, height = height, width
    return fit_size((width, height), None, None)


@dataclass(frozen=True)
class Mix:
    """What a trace is made of. ``own_pictures`` is the share of requests that name no size."""

    name: str
    own_pictures: float
    samplers: Choices = _SAMPLERS
    steps: Choices = _STEPS
    strengths: Choices = _STRENGTHS
    cfg_scales: Choices = _CFG_SCALES
    named: Choices = _NAMED

    def draw(self, rng: random.Random, ident: int, at: float) -> Arrival:
        if rng.random() < self.own_pictures:
            width, height = _own_size(rng)
        else:
            width, height = _pick(rng, self.named)
        (sampler,) = _pick(rng, self.samplers)
        (steps,) = _pick(rng, self.steps)
        (strength,) = _pick(rng, self.strengths)
        (cfg_scale,) = _pick(rng, self.cfg_scales)
        count = evaluations(sampler, steps, strength)
        key = GroupKey(height // 8, width // 8, _TEXT_TOKENS, False)
        recipe = (sampler, steps, count, cfg_scale)
        return Arrival(ident, at, key, guidance_rows(cfg_scale), count, recipe)


MIXES = {
    mix.name: mix
    for mix in (
        Mix("mixed", own_pictures=0.5),
        Mix("pictures", own_pictures=1.0),
        Mix("one_size", own_pictures=0.0, named=((1, 512, 512),)),
        Mix(
            "default",
            own_pictures=0.0,
            samplers=((1, Sampler.K_DPMPP_2M),),
            steps=((1, 30),),
            strengths=((1, 0.35),),
            cfg_scales=((1, 7.0),),
            named=((1, 512, 512),),
        ),
    )
}
"""``mixed``: half name a size, half send a picture of their own; ``pictures``: all do.
``one_size``: 512 x 512 but otherwise mixed. ``default``: the default request alone."""


def poisson(rng: random.Random) -> Iterator[float]:
    """Gaps of a Poisson process of rate 1."""
    while True:
        yield rng.expovariate(1.0)


def bursty(rng: random.Random, burst: float = 8.0) -> Iterator[float]:
    """Gaps at rate 1: bursts of geometric size (mean ``burst``) that come as a Poisson process."""
    while True:
        yield rng.expovariate(1.0 / burst) if rng.random() < 1.0 / burst else 0.0


ARRIVALS = {"poisson": poisson, "bursty": bursty}


def make_trace(mix: Mix, arrivals: str, count: int, seed: int) -> list[Arrival]:
    """``count`` requests at rate 1 a second."""
    rng = random.Random(seed)
    gaps = ARRIVALS[arrivals](random.Random(seed + 1))
    at = 0.0
    trace = []
    for ident in range(count):
        at += next(gaps)
        trace.append(mix.draw(rng, ident, at))
    return trace


def at_rate(trace: Sequence[Arrival], rate: float) -> list[Arrival]:
    """The same requests in the same order, ``rate`` times as fast."""
    return [replace(arrival, at=arrival.at / rate) for arrival in trace]
