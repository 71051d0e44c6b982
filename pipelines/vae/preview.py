"""Small pictures of unfinished latents, by a linear map from four latent channels to RGB.

Latents of these autoencoders are close to linear in the colour of their 8 x 8 pixels, so a matrix
shows what a picture will be for the price of nothing. It is fitted to the model at hand, by least
squares over patches of random colour that its own VAE encodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from models.bundle import ModelBundle
from pipelines.request import Pixels
from pipelines.vae.encode import encode_image

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
        latents = encode_image(bundle, image, tile=False).mean.cpu() * bundle.scaling_factor
        # The latents in the middle of a patch, away from its neighbours' colours.
        middle = latents[:, 1::_PATCH_LATENTS, 1::_PATCH_LATENTS].flatten(1).T  # (n, 4)
        known = torch.cat([middle, torch.ones(len(middle), 1)], dim=1).double()
        wanted = torch.from_numpy(colours.reshape(-1, 3)).double() / 255
        solution = torch.linalg.lstsq(known, wanted).solution.float()
        return cls(solution[:-1].T.contiguous(), solution[-1])

    def picture(self, latents: torch.Tensor) -> Pixels:
        """(4, h, w) scaled latents to an (h, w, 3) uint8 picture, a pixel a latent."""
        flat = latents.float().cpu()
        rgb = torch.einsum("oc,chw->hwo", self.weight, flat) + self.bias
        return np.asarray((rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
