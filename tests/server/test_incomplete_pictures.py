"""A file of which pixels are missing or damaged is refused; none are made up."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from server.errors import ImageError
from server.images.decode import decode_image
from tests.server.pictures import file_of, gradient, png_chunk, png_of
from tests.server.tiff_files import tiff_of

PICTURE = gradient(96, 80)
NOISE = np.random.default_rng(3).integers(0, 256, (40, 48, 3), np.uint8)
TRUNCATED = "^init_image: the (picture|TIFF) is truncated or corrupt"

CUT = {
    "png": file_of(PICTURE),
    "png palette": file_of(PICTURE.quantize(16)),
    "png 16 bits": file_of(Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 257)),
    "jpeg": file_of(PICTURE, "JPEG", quality=90),
    "jpeg progressive": file_of(PICTURE, "JPEG", progressive=True),
    "jpeg grey": file_of(PICTURE.convert("L"), "JPEG"),
    "webp": file_of(PICTURE, "WEBP"),
    "tiff of jpeg": file_of(PICTURE, "TIFF", compression="jpeg"),
    "gif": file_of(PICTURE.quantize(64), "GIF"),
    "bmp": file_of(PICTURE, "BMP"),
    "bmp palette": file_of(PICTURE.quantize(16), "BMP"),
    "webp lossless": file_of(PICTURE, "WEBP", lossless=True),
    "tiff": file_of(PICTURE, "TIFF"),
    "tiff of short strips": file_of(PICTURE, "TIFF", tiffinfo={278: 3}),
    "tiff palette": file_of(PICTURE.quantize(16), "TIFF"),
    "tiff of one bit": file_of(PICTURE.convert("1"), "TIFF"),
    "tiff CMYK": file_of(PICTURE.convert("CMYK"), "TIFF"),
    "tiff LZW": file_of(PICTURE, "TIFF", compression="tiff_lzw"),
    "tiff deflate": file_of(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
    "tiff packbits": file_of(PICTURE, "TIFF", compression="packbits"),
    "tiff of 16 bits": file_of(Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 257), "TIFF"),
}


def decoded(data: bytes) -> np.ndarray | None:
    try:
        return np.asarray(decode_image(data))
    except ImageError:
        return None


@pytest.mark.parametrize("name", CUT)
def test_a_cut_file_is_refused_or_has_every_pixel(name: str) -> None:
    data = CUT[name]
    whole = decoded(data)
    assert whole is not None
    for cut in (*range(1, 40), *range(40, 600, 37), len(data) // 2):
        left = decoded(data[:-cut])
        assert left is None or np.array_equal(left, whole), f"{cut} bytes less"


@pytest.mark.parametrize("name", [name for name in CUT if name.startswith("tiff")])
def test_a_tiff_that_lost_bytes_in_its_middle_is_refused(name: str) -> None:
    data = CUT[name]
    middle = len(data) // 2
    left = decoded(data[:middle] + data[middle + 100 :])
    assert left is None


def test_damage_to_image_data_is_found_by_its_checksum() -> None:
    flat = file_of(Image.new("RGB", (320, 320), (30, 60, 90)))
    start = flat.index(b"IDAT") + 4
    length = int.from_bytes(flat[start - 8 : start - 4])
    for place in (*range(start, start + length + 4, 7), start + length):
        data = bytearray(flat)
        data[place] ^= 0x10
        with pytest.raises(ImageError, match=TRUNCATED):
            decode_image(bytes(data))


@pytest.mark.parametrize(
    "rows", [b"", bytes(1), bytes(961 * 160), bytes(961 * 319), bytes(961 * 320 - 1)]
)
def test_rows_that_are_missing_are_not_made_up(rows: bytes) -> None:
    with pytest.raises(ImageError, match=TRUNCATED):
        decode_image(png_of(320, 320, 8, 2, rows))


def test_what_zlib_holds_back_is_counted() -> None:
    """A stream without its checksum; 1448 is a size whose last rows are held back."""
    header = struct.pack(">IIBBBBB", 1448, 1448, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes((1 + 3 * 1448) * 1448))[:-4]
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed)
    assert decode_image(data).size == (1448, 1448)


def test_an_empty_part_of_the_pixels_may_be_damaged() -> None:
    data = png_of(8, 8, 8, 2, bytes(25 * 8))
    end = data.index(b"IEND") - 4
    assert decode_image(data[:end] + bytes(4) + b"IDAT" + bytes(4) + data[end:]).size == (8, 8)


def test_rows_too_many_do_no_harm() -> None:
    assert decode_image(png_of(8, 8, 8, 2, bytes(25 * 8 + 5000))).size == (8, 8)


@pytest.mark.parametrize("colour_type, samples", [(0, 1), (2, 3), (3, 1), (4, 2), (6, 4)])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 9), (8, 8), (17, 13)])
def test_interlaced_pictures_are_counted_right(
    size: tuple[int, int], colour_type: int, samples: int
) -> None:
    width, height = size
    rows = 0
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    for left, top, across, down in (*passes, (0, 1, 1, 2)):
        columns = len(range(left, width, across))
        rows += len(range(top, height, down)) * (1 + columns * samples) if columns else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 1)
    head = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    head += png_chunk(b"PLTE", bytes(3)) if colour_type == 3 else b""
    whole = head + png_chunk(b"IDAT", zlib.compress(bytes(rows)))
    assert decode_image(whole).size == size
    with pytest.raises(ImageError, match=TRUNCATED):
        decode_image(head + png_chunk(b"IDAT", zlib.compress(bytes(rows - 1))))


def test_a_last_strip_may_say_the_bytes_of_a_whole_one() -> None:
    data = bytearray(tiff_of(NOISE, 2, rows_per_strip=16))
    counts = struct.pack("<3I", 48 * 3 * 16, 48 * 3 * 16, 48 * 3 * 8)
    assert data.count(counts) == 1
    place = data.index(counts)
    # Its pixels end the file, and so what it says reaches past them.
    data[place : place + 12] = struct.pack("<3I", *[48 * 3 * 16 * 99] * 3)
    assert np.array_equal(np.asarray(decode_image(bytes(data))), NOISE)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_cut_avif_is_refused() -> None:
    data = file_of(PICTURE, "AVIF")
    assert decoded(data[: len(data) // 2]) is None
