"""Masks between pixels and latents: what a step sees of one, and the picture put together again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.request import Mask, Pixels


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

    Both to the bit. Only the smallest box around the mask is looked at.
    """
    result = image.copy()
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return result
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    weight = mask[box][..., None].astype(np.uint16)
    # At most 255 * 255 + 127, which fits.
    blend = weight * made[box] + (255 - weight) * image[box]
    result[box] = (blend + 127) // 255
    return result
