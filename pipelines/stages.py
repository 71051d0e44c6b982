"""Before and after the loop: noise, picture to latents, latents to picture."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from models.autoencoder import TILE_SIDE
from models.bundle import ModelBundle
from pipelines.cache import ByteCache, CacheCounts
from pipelines.request import Pixels
from pipelines.samplers import Table
from pipelines.vae_passes import (
    Layer,
    VaePass,
    decoder_layers,
    encoder_layers,
    tiled_decoder,
    tiled_encoder,
)

logger = logging.getLogger(__name__)


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

    def for_device(self, device: torch.device) -> RequestNoise:
        """The same in memory that ``device`` reads without the host waiting: pinned for CUDA."""
        if device.type != "cuda":
            return self
        return RequestNoise(*(x.pin_memory() for x in (self.posterior, self.start, self.steps)))


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
    encoded = _encode_pass(bundle, image, tile, parts=1).advance()
    return _moments(encoded, bundle.latent_channels)


def goes_in_tiles(
    bundle: ModelBundle, height: int, width: int, tile: bool, share: float = 1.0
) -> bool:
    """Whether the VAE takes a picture in tiles, with ``share`` of the pixels that go in whole.

    Never one that is no larger than a tile, and never one whose opposite edges are to meet
    (``tile``): its tiles would each meet themselves.
    """
    above = bundle.vae_tile_above
    if tile or above is None or max(height, width) <= TILE_SIDE:
        return False
    return height * width > share * above


def _encode_pass(bundle: ModelBundle, image: Pixels, tile: bool, parts: int) -> VaePass:
    pixels = torch.from_numpy(image.astype(np.float32) / 255.0).permute(2, 0, 1)[None]
    pixels = (2.0 * pixels - 1.0).to(bundle.device, bundle.dtype)  # (1, 3, H, W)
    height, width = image.shape[:2]
    compiled = bundle.compiled
    if goes_in_tiles(bundle, height, width, tile):
        layers = tiled_encoder(bundle.vae)
    elif (
        parts == 1
        and compiled is not None
        and compiled.covers(*bundle.latent_size(width, height), tile)
    ):
        layers = [Layer(compiled.encode, 1.0)]
    else:
        layers = encoder_layers(bundle.vae)
    return VaePass(bundle.vae, layers, pixels, parts, tile=tile)


def _moments(encoded: torch.Tensor | None, channels: int) -> Moments:
    """``encoded`` has a mean and a log variance for each channel, or the latents alone."""
    assert encoded is not None
    if encoded.shape[1] == channels:
        latents = encoded[0].float()
        return Moments(latents, torch.zeros_like(latents))
    posterior = DiagonalGaussianDistribution(encoded)
    return Moments(posterior.mean[0].float(), posterior.std[0].float())


class Encoding:
    """A picture being encoded, part by part."""

    def __init__(
        self,
        remembered: Moments | None,
        begun: VaePass | None,
        channels: int,
        keep: Callable[[Moments], None],
    ) -> None:
        self._remembered, self._pass, self._keep = remembered, begun, keep
        self._channels = channels

    @property
    def remembered(self) -> bool:
        """Whether there is nothing to run."""
        return self._pass is None

    def advance(self) -> Moments | None:
        """Run the next part. The moments after the last one; at once if they were remembered."""
        if self._pass is None:
            return self._remembered
        encoded = self._pass.advance()
        if encoded is None:
            return None
        moments = _moments(encoded, self._channels)
        self._keep(moments)
        return moments


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

    def begin(self, image: Pixels, tile: bool, parts: int = 1) -> Encoding:
        """Begin to encode an (H, W, 3) uint8 picture, in ``parts`` calls of `Encoding.advance`."""
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        key = (digest, image.shape, tile)
        remembered = self._cache.get(key)
        begun = None if remembered else _encode_pass(self._bundle, image, tile, parts)
        channels = self._bundle.latent_channels
        return Encoding(remembered, begun, channels, lambda made: self._cache.keep(key, made))

    def encode(self, image: Pixels, tile: bool) -> Moments:
        """The moments of an (H, W, 3) uint8 picture."""
        moments = self.begin(image, tile).advance()
        assert moments is not None
        return moments


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


class Decoding:
    """Latents being decoded, part by part: (4, h, w) scaled latents to an (H, W, 3) uint8 picture.

    A picture that is not finite in half precision is decoded once more in float32: Stable
    Diffusion 1.x's autoencoder is known to overflow float16 on some latents.
    """

    def __init__(
        self, bundle: ModelBundle, latents: torch.Tensor, tile: bool, parts: int = 1
    ) -> None:
        """Raises FloatingPointError if the latents are not finite."""
        if not torch.isfinite(latents).all():
            raise FloatingPointError("the latents are not finite")
        self._bundle, self._tile = bundle, tile
        self._latents = latents[None] / bundle.scaling_factor
        compiled = bundle.compiled
        _, height, width = latents.shape
        if self._in_tiles():
            layers = tiled_decoder(bundle.vae)
        elif parts == 1 and compiled is not None and compiled.covers(height, width, tile):
            layers = [Layer(compiled.decode, 1.0)]
        else:
            layers = decoder_layers(bundle.vae)
        halves = self._latents.to(bundle.dtype)
        self._pass = VaePass(bundle.vae, layers, halves, parts, tile=tile)

    def _in_tiles(self, share: float = 1.0) -> bool:
        height, width = (side * self._bundle.downscale for side in self._latents.shape[-2:])
        return goes_in_tiles(self._bundle, height, width, self._tile, share)

    def advance(self) -> Pixels | None:
        """Run the next part. The picture after the last one.

        Raises FloatingPointError if the picture is not finite.
        """
        decoded = self._pass.advance()
        if decoded is None:
            return None
        if not torch.isfinite(decoded).all() and self._bundle.dtype is not torch.float32:
            logger.warning("a decoded picture is not finite: decoded once more in float32")
            # A copy for the once: the weights in use, and graphs over them, stay as they are.
            vae = deepcopy(self._bundle.vae).float()
            # Float32 takes twice the memory.
            layers = tiled_decoder(vae) if self._in_tiles(share=0.5) else decoder_layers(vae)
            decoded = VaePass(vae, layers, self._latents.float(), 1, tile=self._tile).advance()
            assert decoded is not None
        if not torch.isfinite(decoded).all():
            raise FloatingPointError("the decoded picture is not finite")
        pixels = (decoded[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray((pixels * 255).round().astype(np.uint8))


def decode_latents(bundle: ModelBundle, latents: torch.Tensor, tile: bool) -> Pixels:
    """(4, h, w) scaled latents to an (H, W, 3) uint8 picture.

    Raises FloatingPointError if the latents or the picture are not finite.
    """
    picture = Decoding(bundle, latents, tile).advance()
    assert picture is not None
    return picture
