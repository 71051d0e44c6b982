"""Before and after the loop: noise, picture to latents, latents to picture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from models.bundle import ModelBundle
from models.padding import circular_padding
from pipelines.cache import ByteCache, CacheCounts
from pipelines.request import Pixels
from pipelines.samplers import Table


@dataclass(frozen=True, eq=False)
class RequestNoise:
    """Every random number of a request, float32 on the CPU, each draw (4, h, w).

    Drawn from the request's own generator in the order in which diffusers draws: the posterior
    sample, the start noise, then one draw a stochastic step. So a seed gives the same picture
    alone or in a crowd, and on any device.
    """

    posterior: torch.Tensor
    start: torch.Tensor
    steps: torch.Tensor  # (draws, 4, h, w)

    @classmethod
    def draw(cls, seed: int, shape: tuple[int, int, int], draws: int) -> RequestNoise:
        """``shape`` is that of the latents, (4, h, w)."""
        generator = torch.Generator("cpu").manual_seed(seed)

        def one() -> torch.Tensor:
            return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]

        posterior, start = one(), one()
        steps = [one() for _ in range(draws)]
        return cls(posterior, start, torch.stack(steps) if steps else torch.empty(0, *shape))


@dataclass(frozen=True, eq=False)
class Moments:
    """The VAE's posterior of a picture: mean and standard deviation, (4, h, w) float32.

    An AutoencoderTiny has no posterior: its latents are the mean, and the deviation is zero. The
    draw is consumed all the same, so a seed has the same noise with either kind.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, noise: torch.Tensor, scaling_factor: float) -> torch.Tensor:
        """Scaled latents, (4, h, w) float32."""
        return (self.mean + self.std * noise.to(self.mean.device)) * scaling_factor

    @property
    def nbytes(self) -> int:
        return self.mean.nbytes + self.std.nbytes


def encode_picture(bundle: ModelBundle, image: Pixels, tile: bool) -> Moments:
    """The moments of an (H, W, 3) uint8 picture."""
    pixels = torch.from_numpy(image.astype(np.float32) / 255.0).permute(2, 0, 1)[None]
    pixels = (2.0 * pixels - 1.0).to(bundle.device, bundle.dtype)  # (1, 3, H, W)
    with circular_padding(tile, bundle.vae):
        encoded = bundle.vae.encode(pixels)
    if hasattr(encoded, "latent_dist"):
        posterior = encoded.latent_dist
        return Moments(posterior.mean[0].float(), posterior.std[0].float())
    latents = encoded.latents[0].float()
    return Moments(latents, torch.zeros_like(latents))


class PictureEncoder:
    """Encodes pictures with a bundle's VAE and remembers the latest moments, within a budget.

    Moments are kept, not samples: a request's own posterior draw is consumed on a hit too, so a
    hit changes no bit of the picture. The engine's thread owns it.
    """

    def __init__(self, bundle: ModelBundle, cache_bytes: int = 64 * 2**20) -> None:
        self._bundle = bundle
        self._cache: ByteCache[tuple[bytes, tuple[int, ...], bool], Moments] = ByteCache(
            cache_bytes, size_of=lambda moments: moments.nbytes
        )

    @property
    def counts(self) -> CacheCounts:
        return self._cache.counts

    def encode(self, image: Pixels, tile: bool) -> Moments:
        """The moments of an (H, W, 3) uint8 picture."""
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        key = (digest, image.shape, tile)
        return self._cache.get_or_make(key, lambda: encode_picture(self._bundle, image, tile))


def start_latents(
    moments: Moments, noise: RequestNoise, table: Table, image_strength: float, scaling: float
) -> torch.Tensor:
    """What slot 0 begins with, in sigma space, (4, h, w) float32.

    ``x = x0 + sigma * noise``; at image_strength 0 pure noise, ``sqrt(sigma^2 + 1) * noise``.
    """
    sigma = table.rows[0].sigma
    start = noise.start.to(moments.mean.device)
    if image_strength <= 0.0:
        return start * float(np.sqrt(sigma**2 + 1.0))
    return moments.sample(noise.posterior, scaling) + start * sigma


def decode_latents(bundle: ModelBundle, latents: torch.Tensor, tile: bool) -> Pixels:
    """(4, h, w) scaled latents to an (H, W, 3) uint8 picture.

    Raises FloatingPointError if the picture is not finite.
    """
    scaled = (latents[None] / bundle.scaling_factor).to(bundle.dtype)
    with circular_padding(tile, bundle.vae):
        decoded = bundle.vae.decode(scaled, return_dict=False)[0][0].float()  # (3, H, W)
    if not torch.isfinite(decoded).all():
        raise FloatingPointError("the decoded picture is not finite")
    pixels = (decoded / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray((pixels * 255).round().astype(np.uint8))
