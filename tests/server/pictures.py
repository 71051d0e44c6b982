"""Pictures for tests, and the bytes of their files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CORNERS = {
    "top left": (255, 0, 0),
    "top right": (0, 255, 0),
    "bottom left": (0, 0, 255),
    "bottom right": (255, 255, 0),
}


def four_corners(width: int = 64, height: int = 48) -> Image.Image:
    """A quarter of each colour, so that every turn and mirroring shows."""
    image = Image.new("RGB", (width, height), CORNERS["top left"])
    half_width, half_height = width // 2, height // 2
    image.paste(CORNERS["top right"], (half_width, 0, width, half_height))
    image.paste(CORNERS["bottom left"], (0, half_height, half_width, height))
    image.paste(CORNERS["bottom right"], (half_width, half_height, width, height))
    return image


def corner_colours(image: Image.Image) -> dict[str, tuple[int, ...]]:
    """The colours in the middle of each quarter."""
    width, height = image.size
    places = {
        "top left": (width // 4, height // 4),
        "top right": (3 * width // 4, height // 4),
        "bottom left": (width // 4, 3 * height // 4),
        "bottom right": (3 * width // 4, 3 * height // 4),
    }
    return {name: _rgb(image, place) for name, place in places.items()}


def _rgb(image: Image.Image, place: tuple[int, int]) -> tuple[int, ...]:
    pixel = image.getpixel(place)
    assert isinstance(pixel, tuple)
    return pixel


def file_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def gradient(width: int = 600, height: int = 400) -> Image.Image:
    """Smooth in both directions, with values over the whole range."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, 255 - across], 2).astype(np.uint8))


def max_difference(image: Image.Image, expected: Image.Image | npt.NDArray[np.uint8]) -> int:
    """The largest 8-bit difference anywhere."""
    left = np.asarray(image).astype(int)
    return int(np.abs(left - np.asarray(expected).astype(int)).max())


def assert_upright(image: Image.Image, tolerance: int = 0) -> None:
    assert image.mode == "RGB"
    for name, colour in corner_colours(image).items():
        assert np.abs(np.subtract(colour, CORNERS[name])).max() <= tolerance, name


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def sixteen_bit_rgb_png(pixels: list[tuple[int, int, int]]) -> bytes:
    row = b"\x00" + b"".join(struct.pack(">HHH", *pixel) for pixel in pixels)
    return png_of(len(pixels), 1, 16, 2, row)
