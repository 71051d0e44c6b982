"""What is sent: images as files, fields as texts."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from PIL import Image, ImageOps

ImageSource = Image.Image | bytes | str | os.PathLike[str]
"""An image, the bytes of a file, or the path of one. Files are sent as they are."""

FieldValue = str | int | float | bool | None
"""A value of the form; None leaves its field out."""

ImageFormat = Literal["png", "jpeg", "webp"]

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_DEEP_MODES = ("I", "I;16B", "I;16L", "I;16N")
_DEEP_WHITE = 2**16 - 1


def file_of(source: ImageSource) -> bytes:
    """Return the bytes of a file.

    Raises OSError where a path cannot be read, ValueError for an image of no known black and white.
    """
    if isinstance(source, bytes):
        return source
    if not isinstance(source, Image.Image):
        return Path(source).read_bytes()
    upright = ImageOps.exif_transpose(source)  # PNG would be written without the orientation.
    if upright.mode in _DEEP_MODES:
        upright = _of_16_bits(upright)
    elif upright.mode == "F":
        raise ValueError("the image has mode F, whose white may be 1, 255 or 65535: convert it")
    elif upright.mode not in _PNG_MODES:
        upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _of_16_bits(image: Image.Image) -> Image.Image:
    """Return a deep grey image as the 16 bits a PNG holds: by way of RGB all over 255 is white."""
    wide = image.convert("I")
    darkest, lightest = cast(tuple[float, float], wide.getextrema())  # It has one band.
    if not 0 <= darkest <= lightest <= _DEEP_WHITE:
        raise ValueError(
            f"the image has mode {image.mode} and values from {darkest} to {lightest}, where 0 is "
            f"black and {_DEEP_WHITE} white: convert it"
        )
    return wide.convert("I;16")


def texts_of(fields: Mapping[str, FieldValue]) -> dict[str, str]:
    """Return the form's texts: what is None is left out."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in fields.items()
        if value is not None
    }
