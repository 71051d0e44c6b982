"""Masks between pixels and latents: what a step sees of one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.request import Mask


def latent_mask(mask: Mask, downscale: int) -> npt.NDArray[np.float32]:
    """Return the share of each latent that is made anew, (1, h, w) in [0, 1].

    A latent stands for ``downscale`` x ``downscale`` pixels, and its share is their mean: a line
    thinner than a latent does not vanish, as it may where one pixel is picked, and no share lies
    beyond its pixels, as after a cubic filter.
    """
    height, width = mask.shape
    cells = mask.reshape(height // downscale, downscale, width // downscale, downscale)
    shares = cells.mean(axis=(1, 3), dtype=np.float32) / np.float32(255)
    return np.asarray(shares, dtype=np.float32)[None]
