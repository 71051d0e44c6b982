"""Before and after the loop: noise, picture to latents, latents to picture.

On CUDA nothing here waits for the card: pictures go up from pinned memory, and a decoded one comes
down into it while the next unit of work runs (`Decoded`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from models.bundle import ModelBundle
from models.device import Arrival, download, host_tensor
from models.loading.autoencoder import TILE_SIDE
from pipelines.cache import ByteCache, CacheCounts
from pipelines.request import Pixels
from pipelines.samplers.programs import SamplerProgram
from pipelines.vae.graphs import PassKey, VaeGraphs
from pipelines.vae.passes import (
    Layer,
    VaePass,
    decoder_layers,
    encoder_layers,
    fast_layers,
    in_one,
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
        """Whether there is nothing to run."""
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
    """What slot 0 begins with, in sigma space, (4, h, w) float32.

    ``x = x0 + sigma * noise``; at image_strength 0 pure noise, ``sqrt(sigma^2 + 1) * noise``.
    """
    sigma = program.steps[0].sigma
    start = noise.start.to(moments.mean.device, non_blocking=True)
    if image_strength <= 0.0:
        return start * float(np.sqrt(sigma**2 + 1.0))
    return moments.sample(noise.posterior, scaling) + start * sigma


class Decoded:
    """A picture on its way to the host, which need not wait for it before there is other work.

    One that is not finite in half precision is decoded once more in float32: Stable Diffusion
    1.x's autoencoder is known to overflow float16 on some latents.
    """

    def __init__(self, bundle: ModelBundle, latents: torch.Tensor, tile: bool, arrival: Arrival):
        """``arrival`` brings the (H, W, 3) uint8 picture, then whether (latents, picture) are
        finite."""
        self._bundle, self._latents, self._tile = bundle, latents, tile
        self._arrival = arrival

    def wait(self) -> Pixels:
        """Return the picture, (H, W, 3). Raises FloatingPointError if it cannot be finite."""
        picture, finite = self._arrival.wait()
        latents_finite, image_finite = finite.tolist()
        if not latents_finite:
            raise FloatingPointError("the latents are not finite")
        if image_finite:
            return np.asarray(picture.numpy())
        if self._bundle.dtype is torch.float32:
            raise FloatingPointError("the decoded picture is not finite")
        return self._again()

    def _again(self) -> Pixels:
        logger.warning("a decoded picture is not finite: decoded once more in float32")
        # A copy for the once: the weights in use, and graphs over them, stay as they are.
        vae = deepcopy(self._bundle.vae).float()
        # Float32 takes twice the memory.
        height, width = (side * self._bundle.downscale for side in self._latents.shape[-2:])
        tiles = goes_in_tiles(self._bundle, height, width, self._tile, share=0.5)
        layers = tiled_decoder(vae) if tiles else decoder_layers(vae)
        scaled = self._latents[None].float() / self._bundle.scaling_factor
        decoded = VaePass(vae, layers, scaled, 1, tile=self._tile).advance()
        assert decoded is not None
        picture, finite = _finished(decoded, self._latents[None])
        if not finite.all():
            raise FloatingPointError("the decoded picture is not finite")
        return np.asarray(picture[0].cpu().numpy())


def _finished(decoded: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, H, W) in -1..1 to (B, H, W, 3) uint8, and (B, 2): are latents and picture finite."""
    shown = (decoded.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    picture = (shown * 255).round().to(torch.uint8).contiguous()
    finite = [torch.isfinite(x).flatten(1).all(dim=1) for x in (latents, decoded)]
    return picture, torch.stack(finite, dim=1)


class Decoding:
    """Latents being decoded, part by part: (4, h, w) scaled latents to an (H, W, 3) picture."""

    def __init__(
        self,
        bundle: ModelBundle,
        latents: torch.Tensor,
        tile: bool,
        parts: int = 1,
        graphs: VaeGraphs | None = None,
    ) -> None:
        self._bundle, self._latents, self._tile = bundle, latents, tile
        self._graphs = (
            graphs if parts == 1 and not tile and not _in_tiles(bundle, latents) else None
        )
        layers = _decoder(bundle, latents.shape[-2:], tile, whole=parts == 1)
        scaled = latents[None] / bundle.scaling_factor
        self._pass = VaePass(bundle.vae, layers, scaled.to(bundle.dtype), parts, tile=tile)

    def launch(self) -> Decoded | None:
        """Run the next part. The picture on its way after the last one."""
        if self._graphs is not None:
            return decode_together(self._bundle, [self._latents], self._graphs)[0]
        decoded = self._pass.advance()
        if decoded is None:
            return None
        picture, finite = _finished(decoded, self._latents[None])
        arrival = download(picture[0], finite[0])
        return Decoded(self._bundle, self._latents, self._tile, arrival)

    def advance(self) -> Pixels | None:
        """As `launch`, and wait for the picture. Raises FloatingPointError if it is not finite."""
        launched = self.launch()
        return None if launched is None else launched.wait()


def _in_tiles(bundle: ModelBundle, latents: torch.Tensor) -> bool:
    height, width = (side * bundle.downscale for side in latents.shape[-2:])
    return goes_in_tiles(bundle, height, width, tile=False)


def _decoder(bundle: ModelBundle, size: Sequence[int], tile: bool, whole: bool) -> list[Layer]:
    """The layers of a decode of latents of ``size``, (h, w)."""
    height, width = size
    scale = bundle.downscale
    if goes_in_tiles(bundle, height * scale, width * scale, tile):
        return tiled_decoder(bundle.vae)
    compiled = bundle.compiled
    if whole and compiled is not None and compiled.covers(height, width, tile):
        return [Layer(compiled.decode, 1.0)]
    if bundle.fast is not None and bundle.fast.vae is not None:
        return fast_layers(bundle.fast.vae.decoder, tile)
    return decoder_layers(bundle.vae)


def decode_together(
    bundle: ModelBundle, latents: Sequence[torch.Tensor], graphs: VaeGraphs
) -> list[Decoded]:
    """Decode several (4, h, w) latents of one size in one pass, none of them in tiles."""
    height, width = latents[0].shape[-2:]
    layers = in_one(_decoder(bundle, (height, width), tile=False, whole=True))

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _finished(layers((x / bundle.scaling_factor).to(bundle.dtype)), x)

    key = PassKey("decode", len(latents), height, width)
    pictures, finite = graphs.run(key, torch.stack(list(latents)), forward)
    return [
        Decoded(bundle, one, False, download(picture, ok))
        for one, picture, ok in zip(latents, pictures, finite, strict=True)
    ]


def decode_latents(bundle: ModelBundle, latents: torch.Tensor, tile: bool) -> Pixels:
    """(4, h, w) scaled latents to an (H, W, 3) uint8 picture.

    Raises FloatingPointError if the latents or the picture are not finite.
    """
    picture = Decoding(bundle, latents, tile).advance()
    assert picture is not None
    return picture
