"""What is sent: images as files, fields as texts."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

ImageSource = Image.Image | bytes | str | os.PathLike[str]
"""An image, the bytes of a file, or the path of one. Files are sent as they are."""

FieldValue = str | int | float | bool | None
"""A value of the form; None leaves its field out."""

ImageFormat = Literal["png", "jpeg", "webp"]

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def file_of(source: ImageSource) -> bytes:
    """Return the bytes of a file. Raises OSError where a path cannot be read."""
    if isinstance(source, bytes):
        return source
    if not isinstance(source, Image.Image):
        return Path(source).read_bytes()
    upright = ImageOps.exif_transpose(source)  # PNG would be written without the orientation.
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def texts_of(fields: Mapping[str, FieldValue]) -> dict[str, str]:
    """Return the form's texts: what is None is left out."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in fields.items()
        if value is not None
    }
