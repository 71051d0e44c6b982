"""A finished picture as a file: PNG, JPEG or WebP, with its generation settings inside."""

from __future__ import annotations

import io
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePath

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base

from pipelines.request import Pixels
from server.images import parameters_text
from server.images.decode import encode_png

_PREVIEW_QUALITY = 80
QUALITY = 95
"""Of JPEG and WebP, where a request names none."""


class ImageFormat(StrEnum):
    """A file format that finished pictures can be written in, by Pillow's name."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"

    @property
    def media_type(self) -> str:
        """Return the MIME type."""
        return f"image/{self.value.lower()}"


SUFFIXES = {
    ".png": ImageFormat.PNG,
    ".jpg": ImageFormat.JPEG,
    ".jpeg": ImageFormat.JPEG,
    ".webp": ImageFormat.WEBP,
}


def format_of(path: PurePath) -> ImageFormat | None:
    """Return the format that the suffix of ``path`` names, None where it names none of ours."""
    return SUFFIXES.get(path.suffix.lower())


def encode_image(
    pixels: Pixels, text: Mapping[str, str], form: ImageFormat, quality: int = QUALITY
) -> bytes:
    """Return a file of `(height, width, 3)` uint8 that holds ``text``.

    PNG holds all of it as text chunks. JPEG and WebP have the `parameters` text as EXIF's
    UserComment and the software's name as its Software, where A1111's tools look for them.
    """
    if form is ImageFormat.PNG:
        return encode_png(pixels, text)
    exif = Image.Exif()
    exif[Base.Software] = text.get(parameters_text.SOFTWARE_KEY, "")
    comment = text.get(parameters_text.KEY, "")
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"UNICODE\0" + comment.encode("utf-16-be")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form.value, quality=quality, exif=exif)
    return buffer.getvalue()


def preview_file(
    preview: Pixels, size: tuple[int, int], form: ImageFormat = ImageFormat.PNG
) -> bytes:
    """Return a file of a small unfinished image, smoothly enlarged to ``size``; written quickly."""
    image = Image.fromarray(np.ascontiguousarray(preview)).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if form is ImageFormat.PNG:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, form.value, quality=_PREVIEW_QUALITY)
    return buffer.getvalue()
