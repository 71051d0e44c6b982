"""Small pictures of unfinished latents, by a linear map from four latent channels to RGB, or by a
tiny VAE where there is one.

Latents of these autoencoders are close to linear in the colour of their 8 x 8 pixels, so a matrix
shows what a picture will be for the price of nothing. It is fitted to the model at hand, by least
squares over patches of random colour that its own VAE encodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from models.bundle import ModelBundle
from models.device import download
from pipelines.request import Pixels
from pipelines.vae.encode import encode_image, encode_in_float32

Drawing = Callable[[], Pixels]
"""A preview under way: call it once its step has ended, or it waits for the device."""

PREVIEW_SIDE = 256
"""Pixels to the longer side of a tiny VAE's preview, at most."""
PREVIEW_SECONDS = 0.25
"""Between two of a request by a tiny VAE: nobody sees more."""
_MOST_LATENTS = 64
_PATCHES = 12
_PATCH_LATENTS = 4


@dataclass(frozen=True, eq=False)
class LatentToRgb:
    """``rgb = weight @ latent + bias``, in 0..1; ``weight`` is (3, 4), ``bias`` (3,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def fit(cls, bundle: ModelBundle) -> LatentToRgb:
        """Fit to a bundle's VAE. Deterministic."""
        rng = np.random.default_rng(0)
        colours = rng.integers(0, 256, (_PATCHES, _PATCHES, 3)).astype(np.uint8)
        side = _PATCH_LATENTS * bundle.downscale
        image = colours.repeat(side, axis=0).repeat(side, axis=1)
        moments = encode_image(bundle, image, tile=False)
        if not moments.finite:
            moments = encode_in_float32(bundle, image, tile=False)
        latents = moments.mean.cpu() * bundle.scaling_factor
        # The latents in the middle of a patch, away from its neighbours' colours.
        middle = latents[:, 1::_PATCH_LATENTS, 1::_PATCH_LATENTS].flatten(1).T  # (n, 4)
        known = torch.cat([middle, torch.ones(len(middle), 1)], dim=1).double()
        wanted = torch.from_numpy(colours.reshape(-1, 3)).double() / 255
        solution = torch.linalg.lstsq(known, wanted).solution.float()
        return cls(solution[:-1].T.contiguous(), solution[-1])

    def begin(self, latents: torch.Tensor) -> Drawing:
        """(4, h, w) scaled latents to an (h, w, 3) uint8 picture, a pixel a latent."""
        arrival = download(latents.float())

        def draw() -> Pixels:
            (flat,) = arrival.wait()
            rgb = torch.einsum("oc,chw->hwo", self.weight, flat) + self.bias
            return np.asarray((rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy())

        return draw


class TinyPreview:
    """Draws by an AutoencoderTiny, ``PREVIEW_SIDE`` pixels to the longer side at most.

    It decodes no more than ``_MOST_LATENTS`` to a side, so that a preview of a large picture takes
    no longer than that of a small one.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def begin(self, latents: torch.Tensor) -> Drawing:
        """(4, h, w) scaled latents to an (H, W, 3) uint8 picture."""
        weight = next(self._vae.parameters())
        scaled = _shrunk(latents[None].float(), _MOST_LATENTS) / self._vae.config.scaling_factor
        decoded = self._vae.decode(scaled.to(weight.device, weight.dtype)).sample
        small = _shrunk(decoded.float(), PREVIEW_SIDE)[0].permute(1, 2, 0)
        shown = (small / 2 + 0.5).nan_to_num().clamp(0, 1)
        arrival = download((shown * 255).round().to(torch.uint8).contiguous())
        return lambda: np.asarray(arrival.wait()[0].numpy())


def _shrunk(x: torch.Tensor, most: int) -> torch.Tensor:
    """Return (1, C, h, w) with at most ``most`` to the longer side."""
    height, width = x.shape[-2:]
    scale = most / max(height, width)
    if scale >= 1:
        return x
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return interpolate(x, size=size, mode="area")


@dataclass(eq=False)
class Previews:
    """Draws the previews of one model's requests; on CUDA, but for the first, without a wait.

    By the linear map each time; by a tiny VAE at most every ``PREVIEW_SECONDS`` a request.
    """

    bundle: ModelBundle

    def __post_init__(self) -> None:
        tiny = self.bundle.preview_vae
        self._tiny = None if tiny is None else TinyPreview(tiny)
        self._linear: LatentToRgb | None = None
        self.worked = False

    def begin(self, latents: torch.Tensor, last: float) -> Drawing | None:
        """Begin to draw, unless the ``last`` one, in `time.monotonic()`, is too fresh.

        ``worked`` says then whether it took the device longer than to hand over latents.
        """
        self.worked = False
        if self._tiny is not None:
            if time.monotonic() - last < PREVIEW_SECONDS:
                return None
            self.worked = True
            return self._tiny.begin(latents)
        if self._linear is None:
            self.worked = True
            self._linear = LatentToRgb.fit(self.bundle)
        return self._linear.begin(latents)
