"""Images to latents: the moments of the VAE, kept for the next request with the same image.

On CUDA nothing here waits for the card, but for the second try of a picture that overflowed.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import torch

from models.bundle import ModelBundle
from models.device import Arrival, download, host_tensor
from pipelines.cache import ByteCache, CacheCounts
from pipelines.request import Pixels
from pipelines.vae.graphs import PassKey, VaeGraphs
from pipelines.vae.passes import (
    Layer,
    VaePass,
    encoder_layers,
    fast_layers,
    goes_in_tiles,
    in_float32,
    in_one,
    tiled_encoder,
)

logger = logging.getLogger(__name__)

_Key = tuple[bytes, tuple[int, ...], bool]
"""A picture's digest and shape, and whether it is encoded with circular padding."""


@dataclass(eq=False)
class Moments:
    """The VAE's posterior of a picture: mean and standard deviation, (4, h, w) float32.

    An AutoencoderTiny has no posterior: its latents are the mean, and the deviation is zero. The
    draw is consumed all the same, so a seed has the same noise with either kind.
    ``arrival`` brings whether they are ``finite``, once.
    """

    mean: torch.Tensor
    std: torch.Tensor
    arrival: Arrival | None = None
    _finite: bool = field(default=True, init=False)

    @property
    def finite(self) -> bool:
        """Wait for the encode, and return whether it overflowed nothing."""
        if self.arrival is not None:
            # Let go of then: moments are kept, and pinned memory is dear.
            self._finite, self.arrival = bool(self.arrival.wait()[0]), None
        return self._finite

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


def encode_in_float32(bundle: ModelBundle, image: Pixels, tile: bool) -> Moments:
    """The moments of a picture of which those in the model's own precision are not finite.

    Raises FloatingPointError if they are not finite either.
    """
    if bundle.dtype is not torch.float32:
        logger.warning("an encoded picture is not finite: encoded once more in float32")
        pixels = _normalised(_pixels(bundle, image), torch.float32)
        size = image.shape[0], image.shape[1]
        encoded = in_float32(bundle, pixels, size, tile, encoder_layers, tiled_encoder)
        moments = _moments(encoded, bundle.latent_channels)
        if moments.finite:
            return moments
    raise FloatingPointError("the latents are not finite")


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
    return VaePass(bundle.vae, layers, _pixels(bundle, image), parts, tile=tile)


def _pixels(bundle: ModelBundle, image: Pixels) -> torch.Tensor:
    """(H, W, 3) on the device, a quarter of their floats."""
    pixels = host_tensor(np.array(image), bundle.device)  # a copy: an upload may be read-only
    return pixels.to(bundle.device, non_blocking=True)


def _normalised(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) in -1..1."""
    values = pixels.permute(2, 0, 1)[None].to(torch.float32) / 255.0
    return (2.0 * values - 1.0).to(dtype)


def _moments(encoded: torch.Tensor | None, channels: int) -> Moments:
    """``encoded`` has a mean and a log variance for each channel, or the latents alone."""
    assert encoded is not None
    arrival = download(torch.isfinite(encoded).all())
    if encoded.shape[1] == channels:
        latents = encoded[0].float()
        return Moments(latents, torch.zeros_like(latents), arrival)
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # takes seconds

    posterior = DiagonalGaussianDistribution(encoded)
    return Moments(posterior.mean[0].float(), posterior.std[0].float(), arrival)


class _SharedPass:
    """A picture's pass through the encoder, which every request with that picture moves on."""

    def __init__(self, begun: VaePass, channels: int) -> None:
        self._begun: VaePass | None = begun
        self._channels = channels
        self.moments: Moments | None = None

    @property
    def failed(self) -> bool:
        return self._begun is None

    def advance(self) -> Moments | None:
        """Run the next part, if one is left. The moments after the last one."""
        if self.moments is None:
            assert self._begun is not None, "a failed pass is begun anew"
            try:
                encoded = self._begun.advance()
            except Exception:
                self._begun = None  # with its tensors: who shares it may wait for long
                raise
            if encoded is not None:
                self.moments = _moments(encoded, self._channels)
        return self.moments


class Encoding:
    """A picture being encoded for one request, part by part."""

    def __init__(self, encoder: ImageEncoder, key: _Key, image: Pixels, parts: int) -> None:
        self._encoder, self._key, self._image = encoder, key, image
        self._find(parts)

    def _find(self, parts: int) -> None:
        self._cached = self._encoder.find(self._key)
        self._pass = None
        if self._cached is None:
            self._pass = self._encoder.join(self._key, self._image, parts)

    @property
    def ordinary(self) -> bool:
        """Return whether the next part is one of those that were asked for, and to be run."""
        shared = self._pass
        return shared is not None and shared.moments is None and not shared.failed

    def advance(self) -> Moments | None:
        """Run the next part. The moments after the last one; at once if they are known.

        After another request's part of the same pass has failed, the whole is run anew.
        """
        anew = self._pass is not None and self._pass.failed
        if anew:
            self._find(parts=1)
        if self._pass is None:
            return self._cached
        moments = self._pass.advance()
        while anew and moments is None:  # another has begun it again in parts
            moments = self._pass.advance()
        if moments is not None:
            self._encoder.keep(self._key, self._pass)
        return moments


def _key(image: Pixels, tile: bool, digest: bytes | None) -> _Key:
    return digest or image_digest(image), image.shape, tile


def image_digest(image: Pixels) -> bytes:
    """Return what a picture is known by in the cache."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


class ImageEncoder:
    """Encodes pictures with a bundle's VAE and remembers the latest moments, within a budget.

    Moments are kept, not samples: a request's own posterior draw is consumed on a hit too, so a
    hit changes no bit of the picture. Requests whose picture is being encoded share that pass, as
    long as one of them is there. The engine's thread owns it.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        cache_bytes: int = 64 * 2**20,
        graphs: VaeGraphs | None = None,
    ) -> None:
        self._bundle, self._graphs = bundle, graphs
        self._cache: ByteCache[_Key, Moments] = ByteCache(
            cache_bytes, size_of=lambda moments: moments.nbytes
        )
        self._passes: WeakValueDictionary[_Key, _SharedPass] = WeakValueDictionary()

    @property
    def counts(self) -> CacheCounts:
        """Hits and misses; to share a pass under way is a hit."""
        return self._cache.counts

    def begin(
        self, image: Pixels, tile: bool, parts: int = 1, digest: bytes | None = None
    ) -> Encoding:
        """Begin to encode an (H, W, 3) uint8 picture, in ``parts`` calls of `Encoding.advance`.

        ``digest`` is its `image_digest`, where another thread has made it already.
        """
        return Encoding(self, _key(image, tile, digest), image, parts)

    def find(self, key: _Key) -> Moments | None:
        """Return the moments that are kept, and count a hit or a miss."""
        if self._under_way(key) is not None:
            self._cache.counts.hits += 1
            return None
        return self._cache.get(key)

    def join(self, key: _Key, image: Pixels, parts: int) -> _SharedPass:
        """Return the pass of a picture that is under way, or a new one."""
        shared = self._under_way(key)
        if shared is None:
            begun = _encode_pass(self._bundle, image, key[2], parts, self._graphs)
            shared = self._passes[key] = _SharedPass(begun, self._bundle.latent_channels)
        return shared

    def keep(self, key: _Key, shared: _SharedPass) -> None:
        """Keep what a pass has made, once: it may have been replaced since."""
        if shared.moments is not None and self._passes.get(key) is shared:
            del self._passes[key]
            self._cache.keep(key, shared.moments)

    def again(self, image: Pixels, tile: bool, digest: bytes | None = None) -> Moments:
        """Return the moments of a picture of which those from `begin` are not finite.

        It is encoded once more in float32, unless another request has had that done. Raises
        FloatingPointError if they cannot be finite.
        """
        key = _key(image, tile, digest)
        moments = self._cache.take(key)
        if moments is None or not moments.finite:
            moments = encode_in_float32(self._bundle, image, tile)
        self._cache.keep(key, moments)
        return moments

    def encode(self, image: Pixels, tile: bool) -> Moments:
        """The moments of an (H, W, 3) uint8 picture."""
        moments = self.begin(image, tile).advance()
        assert moments is not None
        return moments

    def _under_way(self, key: _Key) -> _SharedPass | None:
        shared = self._passes.get(key)
        return None if shared is None or shared.failed else shared
