"""The latents that a request starts from."""

from __future__ import annotations

import math

import torch

from pipelines.request import GenerationRequest, MaskedContent
from pipelines.vae.noise import RequestNoise


def start_latents(
    request: GenerationRequest,
    sigma: float,
    noise: RequestNoise,
    picture: torch.Tensor | None,
    mask: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """Return what slot 0 begins with, in sigma space, (4, h, w) float32 on ``device``.

    ``sigma`` is the first noise level, ``picture`` the scaled latents of the image, (4, h, w), or
    None from noise; ``mask`` is (1, h, w), 1 where latents are made anew, if there is one.

    ``x = x0 + sigma * noise``; from noise and at image_strength 0 noise of that variance alone,
    ``sqrt(sigma^2 + 1) * noise``. Outside a mask x0 is the picture in any case.
    """
    start = noise.start.to(device, non_blocking=True)
    if picture is None:
        return start * math.sqrt(sigma**2 + 1.0)
    noised = picture + start * sigma
    if request.first_step is None and request.image_strength <= 0.0:
        made = start * math.sqrt(sigma**2 + 1.0)
    elif mask is None or request.masked_content is MaskedContent.ORIGINAL:
        made = noised
    elif noise.content is None:  # latent nothing
        made = start * sigma
    else:
        made = noise.content.to(device, non_blocking=True) + start * sigma
    return made if mask is None else torch.lerp(noised, made, mask)
