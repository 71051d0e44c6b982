"""The size of the picture to make, and a picture made to fit it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from fractions import Fraction

from PIL import Image

from pipelines.request import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

IMAGE_FIELD = "init_image"


class ResizeMode(StrEnum):
    """The ways to make a picture fit the size asked for."""

    CROP = "crop"
    STRETCH = "stretch"
    PAD = "pad"


def fit_size(
    image_size: tuple[int, int],
    width: int | None,
    height: int | None,
    auto_sizes: Sequence[tuple[int, int]] = (),
) -> tuple[int, int]:
    """Return the size to make, each side a multiple of 64 in 320..1536, of a `image_size`.

    Neither side given: the picture's own times `min(max(1, 320 / shorter), 1536 / longer)`, or of
    `auto_sizes` the one of the nearest aspect ratio, and of those the one nearest in area. One
    given: the other by the picture's aspect ratio.
    """
    own_width, own_height = image_size
    if width is None and height is None and auto_sizes:

        def distance(size: tuple[int, int]) -> tuple[float, float]:
            ratio = size[0] * own_height / (size[1] * own_width)
            area = size[0] * size[1] / (own_width * own_height)
            return round(abs(math.log(ratio)), 9), abs(math.log(area))

        return min(auto_sizes, key=distance)
    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, _nearest_side(Fraction(width * own_height, own_width))
    if height is not None:
        return _nearest_side(Fraction(height * own_width, own_height)), height
    shorter, longer = sorted(image_size)
    scale = min(max(Fraction(1), Fraction(MIN_SIDE, shorter)), Fraction(MAX_SIDE, longer))
    return _nearest_side(own_width * scale), _nearest_side(own_height * scale)


def made_and_answered(size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Return the size to make for an answer of ``size``, and the one to resize to, if any."""
    made = fit_size(size, None, None)
    return made, None if made == size else size


def _nearest_side(side: Fraction) -> int:
    """The multiple of 64 nearest to `side`, halves upwards, within the allowed sides."""
    nearest = math.floor(side / SIDE_MULTIPLE + Fraction(1, 2)) * SIDE_MULTIPLE
    return min(max(nearest, MIN_SIDE), MAX_SIDE)


def fit_image(
    image: Image.Image,
    width: int,
    height: int,
    mode: ResizeMode,
    background: str = "white",
    shape: tuple[int, int] | None = None,
) -> Image.Image:
    """Return the RGB or L image at `width` x `height` by centre crop, stretching or padding.

    With a ``shape`` it is cut or padded to the aspect ratio of that size, then stretched: for what
    is resized to that size in the end.
    """
    shape = shape or (width, height)
    if mode is ResizeMode.STRETCH:
        return _resize(image, (width, height), (0, 0, *image.size))
    if mode is ResizeMode.CROP:
        return _resize(image, (width, height), _centre_crop(image.size, shape))
    scale = min(Fraction(shape[0], image.width), Fraction(shape[1], image.height))
    inner = (
        max(1, round(image.width * scale * width / shape[0])),
        max(1, round(image.height * scale * height / shape[1])),
    )
    canvas = Image.new(image.mode, (width, height), background)
    offset = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas.paste(_resize(image, inner, (0, 0, *image.size)), offset)
    return canvas


def _centre_crop(
    size: tuple[int, int], target: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The largest centred box of `size` with the aspect ratio of `target`, in source pixels."""
    scale = max(Fraction(target[0], size[0]), Fraction(target[1], size[1]))
    width, height = target[0] / scale, target[1] / scale
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return float(left), float(top), float(left + width), float(top + height)


def _resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    # A gap of 3 leaves Lanczos 3 source pixels a target pixel: the shortcut does not show.
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
