"""An upload and its mask, fitted to the size to make; and how the result gets back to its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.request import Pixels
from server.errors import InvalidInput
from server.images import masks
from server.images.fit import ResizeMode, fit_image, fit_size
from server.img2img.images_request import Finishing, ImagesRequest


@dataclass(frozen=True, eq=False)
class FittedImages:
    """What the engine is given: `(height, width, 3)` and, with a mask, `(height, width)` uint8."""

    image: Pixels
    mask: Pixels | None
    finishing: Finishing

    @property
    def answered(self) -> tuple[int, int]:
        """Return width and height of the images that are handed out."""
        finishing = self.finishing
        if finishing.size is not None:
            return finishing.size
        if finishing.base is not None:
            return finishing.base.size
        height, width = self.image.shape[:2]
        return width, height


def canvas(asked: ImagesRequest) -> FittedImages:
    """Return the canvas of an image from noise, of which only the size counts."""
    width, height = fit_size((512, 512), asked.width, asked.height)
    image = np.full((height, width, 3), 255, np.uint8)
    return FittedImages(image, None, Finishing(size=asked.output_size))


def fit_with_mask(
    asked: ImagesRequest,
    own: Pixels,
    mask_image: Pixels | None,
    auto_sizes: Sequence[tuple[int, int]],
) -> FittedImages:
    """Fit an upload of `(height, width, 4)`, and its mask where there is one. Blocking.

    Raises InvalidInput for a mask that selects nothing.
    """
    source = Image.fromarray(own).convert("RGB")
    target = fit_size(source.size, asked.width, asked.height, auto_sizes)
    output = source.size if asked.keep_size else asked.output_size
    if asked.mask is None or mask_image is None:
        image = fit_image(source, *target, asked.resize_mode, shape=output)
        return FittedImages(np.array(image), None, Finishing(size=output))
    options = asked.mask
    mask = masks.selection(mask_image, options, source.size)
    if options.only_masked:
        box = masks.region(mask, options.padding, target)
        fitted = fit_image(source.crop(box), *target, ResizeMode.STRETCH)
        fitted_mask = fit_image(mask.crop(box), *target, ResizeMode.STRETCH, "black")
        finishing = Finishing(source, mask, box, output)
    else:
        fitted = fit_image(source, *target, asked.resize_mode, shape=output)
        fitted_mask = fit_image(mask, *target, asked.resize_mode, "black", shape=output)
        base, whole_mask = fitted, fitted_mask
        if output is not None and output != target:
            base = fit_image(source, *output, asked.resize_mode)
            whole_mask = fit_image(mask, *output, asked.resize_mode, "black")
        finishing = Finishing(base, whole_mask, None, output)
    if fitted_mask.getbbox() is None:
        size = f"{target[0]} x {target[1]}"
        raise InvalidInput([f"{options.field}: all that it selects is cut away to make {size}"])
    if options.fill:
        # What is worked on; what is kept is the base, which still has its own colours.
        fitted = masks.filled(fitted, fitted_mask)
    return FittedImages(np.array(fitted), np.array(fitted_mask), finishing)
