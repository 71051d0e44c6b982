"""What is asked of every server: seeded requests, and when they are due."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from pipelines.request import Sampler

EQUAL, MIXED = "equal", "mixed"
"""``equal``: the contract's example request over and over, with other pictures, prompts and seeds.
``mixed``: two requests in five are that one, the others choose for themselves."""

_EXAMPLE: dict[str, Any] = {
    "sampler": Sampler.K_DPMPP_2M,
    "steps": 20,
    "image_strength": 0.35,
    "cfg_scale": 7.0,
}
# Samplers that diffusers has, so that every server does the same work.
_SAMPLERS = (
    (40, Sampler.K_DPMPP_2M),
    (15, Sampler.K_EULER),
    (15, Sampler.K_EULER_ANCESTRAL),
    (10, Sampler.DDIM),
    (5, Sampler.DDPM),
    (5, Sampler.K_HEUN),
    (5, Sampler.K_LMS),
    (5, Sampler.K_DPM_2),
)
_STEPS = ((30, 10), (30, 15), (40, 20))
_STRENGTHS = ((50, 0.35), (25, 0.5), (25, 0.6))
_CFG_SCALES = ((60, 7.0), (15, 7.5), (15, 5.0), (10, 1.0))

_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black", "pink")
_SHAPES = ("circle", "house", "tree", "star", "boat", "flower")


@dataclass(frozen=True)
class Call:
    """One request: the form's text fields and the PNG file of its picture."""

    fields: dict[str, str]
    picture: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.picture).decode()


def make_calls(mix: str, count: int, size: int, seed: int) -> list[Call]:
    """``count`` requests for pictures of ``size`` x ``size``; the first n do not depend on count.

    Every picture is another one, so that no cache of pictures can help.
    """
    rng = random.Random(f"{mix} {size} {seed}")
    return [_call(mix, rng, size) for _ in range(count)]


def _call(mix: str, rng: random.Random, size: int) -> Call:
    recipe = dict(_EXAMPLE)
    own = {
        "sampler": _weighted(rng, _SAMPLERS),
        "steps": _weighted(rng, _STEPS),
        "image_strength": _weighted(rng, _STRENGTHS),
        "cfg_scale": _weighted(rng, _CFG_SCALES),
    }
    if mix == MIXED and rng.random() >= 0.4:
        recipe = own
    recipe |= {
        "prompt": f"a {rng.choice(_COLOURS)} {rng.choice(_SHAPES)}",
        "seed": rng.randint(1, 2**32 - 1),
        "width": size,
        "height": size,
    }
    return Call({name: str(value) for name, value in recipe.items()}, _picture(rng, size))


def _weighted(rng: random.Random, choices: Sequence[tuple[int, Any]]) -> Any:
    return rng.choices([value for _, value in choices], [weight for weight, _ in choices])[0]


def _picture(rng: random.Random, size: int) -> bytes:
    image = Image.new("RGB", (size, size), tuple(rng.randint(120, 255) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, side = (rng.randint(0, size) for _ in range(3))
        draw.ellipse((x, y, x + side, y + side), tuple(rng.randint(0, 255) for _ in range(3)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def due_times(count: int, rate: float, seed: int) -> list[float]:
    """When ``count`` Poisson arrivals at ``rate`` a second are due, from 0, in seconds.

    Given how many come in a window, Poisson arrivals are uniform in it: so the offered rate is
    exactly ``rate``, however few there are, and the window is ``count / rate`` long.
    """
    rng = random.Random(f"arrivals {seed}")
    return sorted(rng.uniform(0.0, count / rate) for _ in range(count))
