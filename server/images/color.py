"""Any Pillow mode, profile and bit depth to 8-bit sRGB, in bands, so that memory stays bounded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms

_PROFILE_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
"""The colour space an ICC profile must have to describe a mode."""

_BAND_PIXELS = 1 << 20
"""Pixels that are converted at a time."""

ToRgb = Callable[[Image.Image], Image.Image]
_Box = tuple[int, int, int, int]


@dataclass
class Raster:
    """Decoded pixels as their file has them, and what is needed to show them.

    ``alpha`` is straight, in L, beside the alpha of the mode itself. ``key`` is the transparent
    colour as the samples hold it, of 16 bits if ``low_bytes`` holds the lower halves.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    low_bytes: Image.Image | None = None
    key: tuple[int, ...] | None = None
    profile: bytes | None = None

    def crop(self, box: _Box) -> Raster:
        """Return a part; `box` is (left, top, right, bottom)."""
        return Raster(
            self.image.crop(box),
            None if self.alpha is None else self.alpha.crop(box),
            None if self.low_bytes is None else self.low_bytes.crop(box),
            self.key,
            self.profile,
        )


def to_srgb(raster: Raster, factor: int = 1, opacity: Image.Image | None = None) -> Image.Image:
    """Return loaded pixels as RGB in sRGB, `factor` times smaller, their alpha laid on white.

    Their alpha is also written into `opacity`, an image in L of the size that is returned.
    """
    width, height = raster.image.size
    shrunk = Image.new("RGB", shrunk_size((width, height), factor))
    white = _white_level(raster.image)
    to_rgb: ToRgb | None = None
    for box in _bands(width, height, factor):
        eight_bits, alpha = _to_eight_bits(raster.crop(box), white)
        if factor > 1:
            eight_bits = eight_bits.reduce(factor)
            alpha = None if alpha is None else alpha.reduce(factor)
        if "A" in eight_bits.getbands() and eight_bits.mode != "LAB":
            alpha = eight_bits.getchannel("A")
            eight_bits = _drop_alpha(eight_bits)
        to_rgb = to_rgb or _profile_conversion(eight_bits.mode, raster.profile)
        rgb = to_rgb(eight_bits)
        if alpha is not None:
            shrunk.paste("white", (0, box[1] // factor, rgb.width, box[1] // factor + rgb.height))
            if opacity is not None:
                opacity.paste(alpha, (0, box[1] // factor))
        shrunk.paste(rgb, (0, box[1] // factor), alpha)
    return shrunk


def shrunk_size(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Return the size of an image that is made `factor` times smaller."""
    return -(-size[0] // factor), -(-size[1] // factor)


def _bands(width: int, height: int, factor: int) -> Iterator[_Box]:
    rows = max(1, _BAND_PIXELS // (width * factor)) * factor
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _to_eight_bits(band: Raster, white: float | None) -> tuple[Image.Image, Image.Image | None]:
    """Return the band in one of L, LA, RGB, RGBA, CMYK, LAB or YCbCr, and alpha apart from that."""
    image = band.image
    opacity = _opacity_by_key(band)
    if white is not None:
        eight_bits = _scale_deep_grey(image, white)
    elif image.mode == "La":
        eight_bits = image.convert("LA")
    elif image.mode in ("RGBa", "PA") or (image.mode == "P" and "transparency" in image.info):
        eight_bits = image.convert("RGBA")
    elif image.mode == "1":
        eight_bits = image.convert("L")
    elif image.mode in ("P", "RGBX", "HSV"):
        eight_bits = image.convert("RGB")
    else:
        eight_bits = image
    alpha = opacity or band.alpha
    if alpha is not None and eight_bits.mode in ("L", "RGB"):
        # Inside the mode, so that the colour under it does not bleed where pixels are averaged.
        if eight_bits is image:
            eight_bits = image.copy()
        eight_bits.info.pop("transparency", None)
        eight_bits.putalpha(alpha)
        alpha = None
    return eight_bits, alpha


def _opacity_by_key(band: Raster) -> Image.Image | None:
    """Return 0 where all samples are the transparent colour's, else 255, in L."""
    if band.key is None:
        return None
    image, key = band.image, band.key
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return Image.fromarray(np.where(values == key[0], 0, 255).astype(np.uint8))
    image = image.convert("L") if image.mode == "1" else image
    channels = list(image.split())
    if band.low_bytes is not None:
        channels += band.low_bytes.split()
        key = (*(value >> 8 for value in key), *(value & 0xFF for value in key))
    differs = [
        channel.point([0 if level == value else 255 for level in range(256)])
        for channel, value in zip(channels, key, strict=True)
    ]
    opacity = differs[0]
    for other in differs[1:]:
        opacity = ImageChops.lighter(opacity, other)
    return opacity


def _scale_deep_grey(image: Image.Image, white: float) -> Image.Image:
    """Return grey of more than 8 bits in L, scaled by its range rather than clipped."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=white)
    return Image.fromarray(np.rint(np.clip(values / white, 0.0, 1.0) * 255.0).astype(np.uint8))


def _white_level(image: Image.Image) -> float | None:
    """Return the value that is white in grey of more than 8 bits, None for other pictures.

    Files of 32 bits do not say it, so it is the least range that fits.
    """
    if image.mode.startswith("I;16"):
        return 65535.0
    if image.mode not in ("I", "F"):
        return None
    brightest = max(
        float(np.max(values, initial=0.0, where=np.isfinite(values)))
        for box in _bands(image.width, image.height, 1)
        for values in (np.asarray(image.crop(box)),)
    )
    ranges = (65535.0, 2.0**31 - 1) if image.mode == "I" else (1.0, 255.0, 65535.0)
    return next((white for white in ranges if brightest <= white), brightest)


def _drop_alpha(image: Image.Image) -> Image.Image:
    """Return the colour channels alone, without premultiplying or blending them."""
    if image.mode == "LA":
        return image.getchannel("L")
    return Image.merge("RGB", image.split()[:3])


def _profile_conversion(mode: str, profile: bytes | None) -> ToRgb:
    """Return what converts `mode` to sRGB by an ICC profile, or without one where that is missing,
    broken or of another kind of picture."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == _PROFILE_SPACES.get(mode):
                return _transform(mode, source)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass
    if mode == "LAB":
        return _transform(mode, ImageCms.createProfile("LAB"))
    return lambda image: image.convert("RGB")


def _transform(mode: str, source: Any) -> ToRgb:
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")

    def apply(image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return converted

    return apply
