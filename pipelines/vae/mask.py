"""Masks between pixels and latents: what a step sees of one, and the picture put together again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.request import Mask, Pixels

_BAND = 32
"""Rows of pixels that are blended at a time."""


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


def composite(image: Pixels, made: Pixels, mask: Mask) -> Pixels:
    """Return ``made`` where ``mask`` is 255, ``image`` where it is 0, and their rounded blend.

    Both to the bit. The engine's thread calls it, so only rows with a mask are looked at, some at
    a time: arrays that fit into a cache take a fraction of the time.
    """
    result = image.copy()
    for top in range(0, len(mask), _BAND):
        rows = slice(top, top + _BAND)
        if mask[rows].any():
            weight = np.repeat(mask[rows], 3, axis=1).reshape(made[rows].shape).astype(np.uint16)
            blend = weight * made[rows]
            weight = 255 - weight
            weight *= image[rows]
            blend += weight
            # (n + 128 + (n + 128 >> 8)) >> 8 is n / 255, rounded, for any n here.
            blend += 128
            blend += blend >> 8
            blend >>= 8
            result[rows] = blend
    return result
