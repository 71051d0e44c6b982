"""What is measured, on how large a model, in which order, and what is asked of the engine."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from pipelines.request import GenerationRequest, Pixels, Sampler

MEASURED = ("device", "correctness", "unet", "vae", "engine", "diffusers")
"""Parts that share one process and one model, in their order."""

PARTS = (*MEASURED, "http", "start")
"""All parts, the most important first: what does not fit into the time is left out."""

SECONDS = {
    "device": 3.0,
    "correctness": 25.0,
    "unet": 30.0,
    "vae": 10.0,
    "engine": 30.0,
    "diffusers": 10.0,
    "http": 40.0,
    "start": 40.0,
}
"""What a part needs on a card: a guess, so that none begins that would not end in time."""

CHECKED = (Sampler.K_DPMPP_2M, Sampler.K_EULER, Sampler.K_HEUN, Sampler.DDIM)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is measured.

    ``rows`` are those of a U-Net forward, ``profiled`` those whose kernels are looked at and whose
    result is compared; ``pictures`` are in one VAE pass. ``few`` and ``many`` are the steps of the
    runs whose difference is a step's time. ``product`` is the side of a matrix product in
    elements, ``copy`` the size of a copy in MiB: both at the limit of a card.
    """

    size: int = 512
    steps: int = 30
    checked_steps: int = 12
    rows: tuple[int, ...] = (2, 4, 8, 16, 32)
    profiled: tuple[int, ...] = (2, 16)
    pictures: tuple[int, ...] = (1, 4)
    outstanding: int = 16
    images: int = 48
    rounds: int = 7
    few: int = 10
    many: int = 30
    product: int = 8192
    copy: int = 1024

    @property
    def evaluations(self) -> int:
        """Evaluations of the default request: 19 at full scale."""
        return math.floor(self.steps * 0.65 + 1e-9)


FULL = Scale()
NARROW = Scale(
    size=128,
    steps=10,
    checked_steps=10,
    rows=(2, 4),
    profiled=(2,),
    pictures=(1, 2),
    outstanding=2,
    images=4,
    rounds=1,
    few=2,
    many=6,
    product=256,
    copy=4,
)


def picture(width: int, height: int, seed: int) -> Pixels:
    """Return a smooth picture with an edge, (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    image = np.stack([x, y, 0.5 + 0.5 * np.sin((5 + seed) * x * y)], axis=-1)
    image[height // 3 : height // 2, width // 4 : width // 2] = (0.9, 0.2, 0.1)
    return (image * 255).round().astype(np.uint8)


def ask(scale: Scale, seed: int = 1, **changed: Any) -> GenerationRequest:
    """Return the default request, but for what is ``changed``."""
    options = {"steps": scale.steps, "image_strength": 0.35, "cfg_scale": 7.0, **changed}
    image = picture(scale.size, scale.size, seed)
    return GenerationRequest(image, f"a house, {seed}", seed=seed, **options)


def several(scale: Scale, count: int, first: int = 1, **changed: Any) -> list[GenerationRequest]:
    """Return ``count`` requests of other pictures, prompts and seeds, from seed ``first``."""
    return [ask(scale, first + i, **changed) for i in range(count)]


def checked_requests(scale: Scale) -> list[GenerationRequest]:
    """Return those whose pictures are compared with diffusers'."""
    return [ask(scale, i + 1, sampler=s, steps=scale.checked_steps) for i, s in enumerate(CHECKED)]
