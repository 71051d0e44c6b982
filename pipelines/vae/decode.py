"""Latents to images, which reach the host while the card works on.

On CUDA nothing here waits for the card until `Decoded.wait`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from models.bundle import ModelBundle
from models.device import Arrival, download
from pipelines.request import Pixels
from pipelines.vae.graphs import PassKey, VaeGraphs
from pipelines.vae.passes import (
    Layer,
    VaePass,
    decoder_layers,
    fast_layers,
    goes_in_tiles,
    in_float32,
    in_one,
    tiled_decoder,
)

logger = logging.getLogger(__name__)


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
        height, width = (side * self._bundle.downscale for side in self._latents.shape[-2:])
        scaled = self._latents[None].float() / self._bundle.scaling_factor
        decoded = in_float32(
            self._bundle, scaled, (height, width), self._tile, decoder_layers, tiled_decoder
        )
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
