"""Images to latents: the moments of the VAE, kept for the next request with the same image.

On CUDA nothing here waits for the card.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from models.bundle import ModelBundle
from models.device import host_tensor
from pipelines.cache import ByteCache, CacheCounts
from pipelines.request import Pixels
from pipelines.samplers.programs import SamplerProgram
from pipelines.vae.graphs import PassKey, VaeGraphs
from pipelines.vae.noise import RequestNoise
from pipelines.vae.passes import (
    Layer,
    VaePass,
    encoder_layers,
    fast_layers,
    goes_in_tiles,
    in_one,
    tiled_encoder,
)


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
        noise = noise.to(self.mean.device, non_blocking=True)
        return (self.mean + self.std * noise) * scaling_factor

    @property
    def nbytes(self) -> int:
        return self.mean.nbytes + self.std.nbytes


def encode_image(
    bundle: ModelBundle, image: Pixels, tile: bool, graphs: VaeGraphs | None = None
) -> Moments:
    """The moments of an (H, W, 3) uint8 picture."""
    encoded = _encode_pass(bundle, image, tile, 1, graphs).advance()
    return _moments(encoded, bundle.latent_channels)


def _encode_pass(
    bundle: ModelBundle, image: Pixels, tile: bool, parts: int, graphs: VaeGraphs | None = None
) -> VaePass:
    height, width = bundle.latent_size(image.shape[1], image.shape[0])
    compiled, whole = bundle.compiled, parts == 1 and not tile
    if goes_in_tiles(bundle, image.shape[0], image.shape[1], tile):
        layers, whole = tiled_encoder(bundle.vae), False
    elif whole and compiled is not None and compiled.covers(height, width, tile):
        layers = [Layer(compiled.encode, 1.0)]
    elif bundle.fast is not None and bundle.fast.vae is not None:
        layers = fast_layers(bundle.fast.vae.encoder, tile)
    else:
        layers = encoder_layers(bundle.vae)
    layers = [Layer(lambda pixels: _normalised(pixels, bundle.dtype), 0.0), *layers]
    if whole and graphs is not None:
        key, forward = PassKey("encode", 1, height, width), in_one(layers)
        layers = [Layer(lambda x: graphs.run(key, x, lambda x: (forward(x),))[0], 1.0)]
    pixels = host_tensor(np.array(image), bundle.device)  # a copy: an upload may be read-only
    pixels = pixels.to(bundle.device, non_blocking=True)  # (H, W, 3), a quarter of their floats
    return VaePass(bundle.vae, layers, pixels, parts, tile=tile)


def _normalised(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) in -1..1."""
    values = pixels.permute(2, 0, 1)[None].to(torch.float32) / 255.0
    return (2.0 * values - 1.0).to(dtype)


def _moments(encoded: torch.Tensor | None, channels: int) -> Moments:
    """``encoded`` has a mean and a log variance for each channel, or the latents alone."""
    assert encoded is not None
    if encoded.shape[1] == channels:
        latents = encoded[0].float()
        return Moments(latents, torch.zeros_like(latents))
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # takes seconds

    posterior = DiagonalGaussianDistribution(encoded)
    return Moments(posterior.mean[0].float(), posterior.std[0].float())


class Encoding:
    """A picture being encoded, part by part."""

    def __init__(
        self,
        cached: Moments | None,
        begun: VaePass | None,
        channels: int,
        keep: Callable[[Moments], None],
    ) -> None:
        self._cached, self._pass, self._keep = cached, begun, keep
        self._channels = channels

    @property
    def cached(self) -> bool:
        """Return whether there is nothing to run."""
        return self._pass is None

    def advance(self) -> Moments | None:
        """Run the next part. The moments after the last one; at once if they were cached."""
        if self._pass is None:
            return self._cached
        encoded = self._pass.advance()
        if encoded is None:
            return None
        moments = _moments(encoded, self._channels)
        self._keep(moments)
        return moments


def image_digest(image: Pixels) -> bytes:
    """Return what a picture is known by in the cache."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


class ImageEncoder:
    """Encodes pictures with a bundle's VAE and remembers the latest moments, within a budget.

    Moments are kept, not samples: a request's own posterior draw is consumed on a hit too, so a
    hit changes no bit of the picture. The engine's thread owns it.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        cache_bytes: int = 64 * 2**20,
        graphs: VaeGraphs | None = None,
    ) -> None:
        self._bundle, self._graphs = bundle, graphs
        self._cache: ByteCache[tuple[bytes, tuple[int, ...], bool], Moments] = ByteCache(
            cache_bytes, size_of=lambda moments: moments.nbytes
        )

    @property
    def counts(self) -> CacheCounts:
        return self._cache.counts

    def begin(
        self, image: Pixels, tile: bool, parts: int = 1, digest: bytes | None = None
    ) -> Encoding:
        """Begin to encode an (H, W, 3) uint8 picture, in ``parts`` calls of `Encoding.advance`.

        ``digest`` is its `image_digest`, where another thread has made it already.
        """
        digest = digest or image_digest(image)
        key = (digest, image.shape, tile)
        cached = self._cache.get(key)
        begun = None
        if not cached:
            begun = _encode_pass(self._bundle, image, tile, parts, self._graphs)
        channels = self._bundle.latent_channels
        return Encoding(cached, begun, channels, lambda made: self._cache.keep(key, made))

    def encode(self, image: Pixels, tile: bool) -> Moments:
        """The moments of an (H, W, 3) uint8 picture."""
        moments = self.begin(image, tile).advance()
        assert moments is not None
        return moments


def start_latents(
    moments: Moments,
    noise: RequestNoise,
    program: SamplerProgram,
    image_strength: float,
    scaling: float,
) -> torch.Tensor:
    """Return what slot 0 begins with, in sigma space, (4, h, w) float32.

    ``x = x0 + sigma * noise``; at image_strength 0 pure noise, ``sqrt(sigma^2 + 1) * noise``.
    """
    sigma = program.steps[0].sigma
    start = noise.start.to(moments.mean.device, non_blocking=True)
    if image_strength <= 0.0:
        return start * float(np.sqrt(sigma**2 + 1.0))
    return moments.sample(noise.posterior, scaling) + start * sigma
