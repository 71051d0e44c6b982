"""A mask from an upload: what it selects, its blur, the part around it, what is put in its place.

A mask is an image in L: 255 is made anew, 0 is kept, between the two are mixed. Blocking.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from PIL import Image, ImageChops, ImageFilter

from pipelines.request import Pixels
from server.errors import InvalidInput

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""

MAX_BLUR = 64
MAX_PADDING = 256
_OPAQUE_ABOVE = 128
_FILL_RADII = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radii in pixels and how often each is laid over the last: A1111's `masking.fill`."""


class MaskReads(StrEnum):
    """What of a mask's image is to be made anew. What is transparent is unpainted: nothing of it,
    and half of what is half transparent, unless transparency is what is read."""

    LIGHT = "light"
    DARK = "dark"
    TRANSPARENT = "transparent"
    OPAQUE_OR_LIGHT = "opaque or light"
    """What is opaque, where something is transparent; otherwise what is light: A1111's rule."""


@dataclass(frozen=True)
class MaskOptions:
    """A mask as an API was sent it. Without an ``upload`` it is the alpha of the image itself."""

    upload: bytes | bytearray | None
    reads: MaskReads = MaskReads.LIGHT
    invert: bool = False
    blur: float = 0.0
    """The standard deviation in pixels of the image that was sent."""
    only_masked: bool = False
    """Work on the part around the mask alone, made as large as the image to make."""
    padding: int = 32
    """Pixels that are kept around the mask with `only_masked`."""
    fill: bool = False
    """Put the colours around the mask in its place before the work: A1111's fill 0."""
    field: str = "mask"


def selection(image: Pixels, options: MaskOptions, size: tuple[int, int]) -> Image.Image:
    """Return the mask of an `(height, width, 4)` image at ``size``, inverted and blurred.

    Raises InvalidInput where it selects no pixel.
    """
    picture = Image.fromarray(image)
    alpha = picture.getchannel("A")
    light = picture.convert("RGB").convert("L")
    match options.reads:
        case MaskReads.LIGHT:
            # Laid on white it is a * light + 255 - a under the opacity a; a * light is asked for.
            mask = ImageChops.subtract(light, ImageChops.invert(alpha))
        case MaskReads.DARK:
            # Laid on white, what is transparent is as light as it can be: this is a * dark already.
            mask = ImageChops.invert(light)
        case MaskReads.TRANSPARENT:
            mask = ImageChops.invert(alpha)
        case MaskReads.OPAQUE_OR_LIGHT:
            mask = light
            if alpha.getextrema() != (255, 255):
                mask = alpha.point([0] * (_OPAQUE_ABOVE + 1) + [255] * (255 - _OPAQUE_ABOVE))
    if options.invert:
        mask = ImageChops.invert(mask)
    if mask.getbbox() is None:
        raise InvalidInput(
            [f"{options.field}: selects no pixel; {_advice(options)} is what is made anew"]
        )
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.LANCZOS)
    if options.blur:
        mask = mask.filter(ImageFilter.GaussianBlur(options.blur))
    if mask.getbbox() is None:
        blurred = f" and blurred by {options.blur:g} pixels" if options.blur else ""
        raise InvalidInput(
            [
                f"{options.field}: selects so little that nothing is left of it, made "
                f"{size[0]} x {size[1]}{blurred}"
            ]
        )
    return mask


def _advice(options: MaskOptions) -> str:
    white, black = ("black", "white") if options.invert else ("white", "black")
    return {
        MaskReads.LIGHT: white,
        MaskReads.DARK: black,
        MaskReads.TRANSPARENT: "what is opaque" if options.invert else "what is transparent",
        MaskReads.OPAQUE_OR_LIGHT: f"what is opaque, or {white} in an opaque mask,",
    }[options.reads]


def region(mask: Image.Image, padding: int, target: tuple[int, int]) -> Box:
    """Return the part of the image around what the mask selects, with ``padding`` pixels around.

    It has the aspect ratio of ``target``, as far as the image reaches.
    """
    bounds = mask.getbbox()
    assert bounds is not None, "an empty mask was refused before"
    left, top = max(0, bounds[0] - padding), max(0, bounds[1] - padding)
    right, bottom = min(mask.width, bounds[2] + padding), min(mask.height, bounds[3] + padding)
    ratio = Fraction(target[0], target[1])
    if Fraction(right - left, bottom - top) < ratio:
        left, right = _widened(left, right, round((bottom - top) * ratio), mask.width)
    else:
        top, bottom = _widened(top, bottom, round((right - left) / ratio), mask.height)
    return left, top, right, bottom


def _widened(low: int, high: int, length: int, most: int) -> tuple[int, int]:
    """Return the stretch around `low..high` of ``length`` that lies within `0..most`."""
    length = min(max(length, high - low), most)
    low -= (length - (high - low)) // 2
    low = max(0, min(low, most - length))
    return low, low + length


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the RGB image with the colours around the mask blurred into its place."""
    kept = ImageChops.invert(mask)
    cut = Image.new("RGBa", image.size)
    cut.paste(image.convert("RGBA").convert("RGBa"), mask=kept)
    result = Image.new("RGBA", image.size)
    for radius, times in _FILL_RADII:
        layer = cut.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            result.alpha_composite(layer)
    return result.convert("RGB")


def composite(made: Image.Image, base: Image.Image, mask: Image.Image) -> Image.Image:
    """Return ``made`` where the mask is 255 and ``base`` where it is 0, to the bit."""
    return Image.composite(made, base, mask)
