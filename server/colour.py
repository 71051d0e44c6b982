"""Any Pillow mode, profile and bit depth to 8-bit sRGB."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

_PROFILE_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
"""The colour space an ICC profile must have to describe a mode."""

_BLOCK_PIXELS = 1 << 20
"""Deep grey is scaled in blocks of this many pixels, to bound memory."""


def to_srgb(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as RGB in sRGB, its alpha laid on white."""
    profile = image.info.get("icc_profile")
    image = _to_eight_bits(image)
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    colour = _drop_alpha(image)
    rgb = _apply_profile(colour, profile) or _convert_unprofiled(colour)
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """The picture in one of L, LA, RGB, RGBA, CMYK, LAB or YCbCr."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _scale_deep_grey(image)
    if mode == "La":
        return image.convert("LA")
    if mode in ("RGBa", "PA"):
        return image.convert("RGBA")
    if "transparency" in image.info and mode in ("1", "L", "P", "RGB"):
        return image.convert("RGBA")
    if mode == "1":
        return image.convert("L")
    if mode in ("P", "RGBX", "HSV"):
        return image.convert("RGB")
    return image


def _scale_deep_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, scaled by its range rather than clipped."""
    values = np.asarray(image)  # (height, width) uint16, int32 or float32
    white = _white_level(image.mode, values)
    eight_bits = np.empty(values.shape, np.uint8)
    rows = max(1, _BLOCK_PIXELS // values.shape[1])
    for top in range(0, values.shape[0], rows):
        block = np.nan_to_num(values[top : top + rows].astype(np.float64), posinf=white)
        eight_bits[top : top + rows] = np.rint(np.clip(block / white, 0.0, 1.0) * 255.0)
    scaled = Image.fromarray(eight_bits)
    scaled.info = dict(image.info)
    key = image.info.get("transparency")
    if isinstance(key, int):
        scaled.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return scaled


def _white_level(mode: str, values: npt.NDArray[Any]) -> float:
    """The value that is white: files of 32 bits do not say it, so the least range that fits."""
    if mode.startswith("I;16"):
        return 65535.0
    brightest = float(np.max(values, initial=0.0, where=np.isfinite(values)))
    ranges = (65535.0, 2.0**31 - 1) if mode == "I" else (1.0, 255.0, 65535.0)
    return next((white for white in ranges if brightest <= white), brightest)


def _drop_alpha(image: Image.Image) -> Image.Image:
    """The colour channels alone, without premultiplying or blending them."""
    if image.mode == "LA":
        return image.getchannel("L")
    if image.mode == "RGBA":
        return Image.merge("RGB", image.split()[:3])
    return image


def _apply_profile(image: Image.Image, profile: Any) -> Image.Image | None:
    """The picture in sRGB by its ICC profile, or None where that is missing, broken or of
    another kind of picture."""
    if not isinstance(profile, bytes) or not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _PROFILE_SPACES.get(image.mode):
            return None
        return ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _convert_unprofiled(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.createProfile("LAB"),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
        assert converted is not None
        return converted
    return image.convert("RGB")
