"""Kinds of TIFF that Pillow does not read, or misreads: right to the pixel, or refused by name."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from server.errors import ImageError
from server.images.decode import decode_image
from tests.server.pictures import file_of, four_corners
from tests.server.tiff_files import tiff_of

ORDERS = pytest.mark.parametrize("order", ["<", ">"])
LEVELS = (0, 85, 170, 255)


def columns(*values: object, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[np.generic]:
    """Four columns or so, 16 pixels wide and 20 high each: `(20, n * 16, samples)`."""
    row = np.array(values, dtype).reshape(len(values), -1)
    return row.repeat(16, 0)[None].repeat(20, 0)


def shown(data: bytes, count: int = 4) -> list[tuple[int, ...]]:
    """The colours in the middle of each column."""
    picture = decode_image(data)
    places = [(picture.width * (2 * n + 1) // (2 * count), 9) for n in range(count)]
    return [picture.getpixel(place) for place in places]  # type: ignore[misc]


def greys(*levels: int) -> list[tuple[int, ...]]:
    return [(level,) * 3 for level in levels]


LAYOUTS = pytest.mark.parametrize(
    "layout",
    [
        {},
        {"rows_per_strip": 3},
        {"tile": (16, 16)},
        {"tile": (48, 32)},
        {"compression": 8, "rows_per_strip": 7},
        {"compression": 8, "tile": (16, 16)},
        {"big": True},
        {"separate": True, "rows_per_strip": 6},
        {"separate": True, "compression": 8, "tile": (32, 16)},
    ],
    ids=lambda layout: " ".join(f"{name}={value}" for name, value in layout.items()) or "plain",
)


# Grey


@ORDERS
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_of_every_depth(bits: int, photometric: int, order: str) -> None:
    most = 2**bits - 1
    levels = (0, most, 0, most) if bits == 1 else tuple(level * most // 255 for level in LEVELS)
    dtype = np.uint16 if bits > 8 else np.uint8
    data = tiff_of(columns(*levels, dtype=dtype), photometric, bits=bits, order=order)
    expected = [level * 255 // most for level in levels]
    expected = [255 - level for level in expected] if photometric == 0 else expected
    assert np.abs(np.subtract(shown(data), greys(*expected))).max() <= 1


@ORDERS
@LAYOUTS
def test_sixteen_bit_grey_in_every_layout(layout: dict[str, object], order: str) -> None:
    levels = [level * 257 for level in LEVELS]
    data = tiff_of(columns(*levels, dtype=np.uint16), 0, order=order, **layout)  # type: ignore[arg-type]
    assert shown(data) == greys(255, 170, 85, 0)


def test_twelve_bit_grey_with_its_bits_backwards() -> None:
    values = columns(0, 1365, 2730, 4095, dtype=np.uint16)
    assert shown(tiff_of(values, 1, bits=12, backwards=True)) == greys(*LEVELS)


@ORDERS
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("photometric", [0, 1])
def test_unsigned_thirty_two_bit_grey(photometric: int, compression: int, order: str) -> None:
    values = columns(*(level * 0x01010101 for level in LEVELS), dtype=np.uint32)
    data = tiff_of(values, photometric, compression=compression, order=order)
    assert shown(data) == greys(*(LEVELS if photometric else LEVELS[::-1]))


@ORDERS
@pytest.mark.parametrize("compression", [1, 8])
def test_signed_thirty_two_bit_grey(compression: int, order: str) -> None:
    values = columns(-5, 0, 2**30, 2**31 - 1, dtype=np.int32)
    assert shown(tiff_of(values, 1, compression=compression, order=order)) == greys(0, 0, 128, 255)


@ORDERS
@pytest.mark.parametrize("compression", [1, 8])
def test_signed_sixteen_bit_grey(compression: int, order: str) -> None:
    values = columns(-5, 0, 2**14, 2**15 - 1, dtype=np.int16)
    assert shown(tiff_of(values, 1, compression=compression, order=order)) == greys(0, 0, 128, 255)


def test_signed_eight_bit_grey_is_scaled_as_the_deeper_is() -> None:
    assert shown(tiff_of(columns(-5, 0, 64, 127, dtype=np.int8), 1)) == greys(0, 0, 129, 255)


@ORDERS
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("compression", "predictor"), [(1, 1), (8, 1), (8, 3)])
def test_floating_point_grey(
    dtype: npt.DTypeLike, compression: int, predictor: int, order: str
) -> None:
    values = columns(0.0, 1 / 3, 2 / 3, 1.0, dtype=dtype)
    data = tiff_of(values, 1, compression=compression, predictor=predictor, order=order)
    assert shown(data) == greys(*LEVELS)


def test_floating_point_grey_that_is_not_finite() -> None:
    values = columns(np.nan, -np.inf, np.inf, 0.5, dtype=np.float32)
    assert shown(tiff_of(values, 1)) == greys(0, 0, 255, 128)


@ORDERS
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_differences_of_neighbours(dtype: type[np.unsignedinteger], order: str) -> None:
    most = int(np.iinfo(dtype).max)
    values = columns(*(level * (most // 255) for level in LEVELS), dtype=dtype)
    data = tiff_of(values, 0, compression=8, predictor=2, order=order)
    assert shown(data) == greys(*LEVELS[::-1])


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_deflate", "lzma", "zstd"])
def test_each_compression_of_deep_grey(compression: str) -> None:
    values = columns(*(level * 257 for level in LEVELS), dtype=np.uint16)[:, :, 0]
    assert shown(file_of(Image.fromarray(values), "TIFF", compression=compression)) == greys(
        *LEVELS
    )


# Alpha


@ORDERS
@LAYOUTS
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_with_alpha(
    dtype: type[np.unsignedinteger], layout: dict[str, object], order: str
) -> None:
    most = int(np.iinfo(dtype).max)
    values = columns((0, most), (0, 0), (most, most), (most // 3, most), dtype=dtype)
    data = tiff_of(values, 1, extra=[2], order=order, **layout)  # type: ignore[arg-type]
    assert shown(data) == greys(0, 255, 255, 85)


def test_grey_with_alpha_where_white_is_zero() -> None:
    values = columns((255, 255), (255, 0), (0, 255), (170, 255))
    assert shown(tiff_of(values, 0, extra=[2])) == greys(0, 255, 255, 85)


def test_premultiplied_alpha() -> None:
    values = columns((100, 128), (0, 0), (255, 255), (0, 128))
    assert (
        np.abs(np.subtract(shown(tiff_of(values, 1, extra=[1])), greys(227, 255, 255, 127))).max()
        <= 1
    )


def test_an_extra_sample_that_is_no_alpha_is_left_out() -> None:
    values = columns((0, 0), (85, 1), (170, 2), (255, 3), dtype=np.uint16) * 257
    assert shown(tiff_of(values, 1, extra=[0])) == greys(*LEVELS)


@ORDERS
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("separate", [False, True])
def test_cmyk_with_alpha(dtype: type[np.unsignedinteger], separate: bool, order: str) -> None:
    m = int(np.iinfo(dtype).max)
    values = columns(
        (0, 0, 0, m, m), (0, m, m, 0, m), (m, 0, m, 0, 0), (0, 0, 0, 0, m), dtype=dtype
    )
    data = tiff_of(values, 5, extra=[2], order=order, separate=separate)
    assert shown(data) == [(0, 0, 0), (255, 0, 0), (255, 255, 255), (255, 255, 255)]


# Colour


@ORDERS
@LAYOUTS
def test_sixteen_bit_colour(layout: dict[str, object], order: str) -> None:
    colours = ((0, 0, 0), (200, 10, 10), (10, 200, 10), (255, 255, 255))
    values = columns(*colours, dtype=np.uint16) * 257
    data = tiff_of(values.astype(np.uint16), 2, order=order, **layout)  # type: ignore[arg-type]
    assert shown(data) == list(colours)


def test_floating_point_colour_with_alpha() -> None:
    values = columns((0, 0, 0, 1), (1, 0, 0, 1), (0, 1, 0, 0), (0.2, 0.4, 0.6, 1), dtype=np.float32)
    assert shown(tiff_of(values, 2, extra=[2], order=">")) == [
        *((0, 0, 0), (255, 0, 0), (255, 255, 255), (51, 102, 153)),
    ]


def lab(dtype: type[np.integer]) -> npt.NDArray[np.generic]:
    """Black, a grey of 50, white, and a green: L* in 0..100, a* and b* signed."""
    if dtype is np.uint8:
        raw = [(0, 0, 0), (128, 0, 0), (255, 0, 0), (128, -60, 40)]
        return columns(*[(a, b & 0xFF, c & 0xFF) for a, b, c in raw])
    raw = [(0, 0, 0), (32896, 0, 0), (65535, 0, 0), (32896, -60 * 256, 40 * 256)]
    return columns(*[(a, b & 0xFFFF, c & 0xFFFF) for a, b, c in raw], dtype=np.uint16)


@ORDERS
@LAYOUTS
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lab(dtype: type[np.integer], layout: dict[str, object], order: str) -> None:
    data = tiff_of(lab(dtype), 8, order=order, **layout)  # type: ignore[arg-type]
    black, grey, white, green = shown(data)
    assert max(black) <= 2
    assert np.abs(np.subtract(grey, 119)).max() <= 2
    assert min(white) >= 253
    assert green[1] > green[0] + 60
    assert green[1] > green[2] + 60


def test_lab_with_alpha() -> None:
    values = np.concatenate([lab(np.uint8), columns(255, 0, 255, 255)], axis=2)
    _, hidden, white, _ = shown(tiff_of(values, 8, extra=[2]))
    assert hidden == (255, 255, 255)
    assert min(white) >= 253


# The directory


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_orientation(orientation: int, dtype: type[np.unsignedinteger]) -> None:
    upright = np.asarray(four_corners(64, 48))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    values = stored.astype(dtype) * (257 if dtype is np.uint16 else 1)
    decoded = decode_image(tiff_of(values.astype(dtype), 2, orientation=orientation))
    assert np.array_equal(np.asarray(decoded), upright)


def test_directories_in_a_circle() -> None:
    data = bytearray(tiff_of(columns(*LEVELS), 1))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    assert shown(bytes(data)) == greys(*LEVELS)


@pytest.mark.parametrize(
    "tag",
    [
        (282, (5, 0)),  # a resolution outside of the file
        (282, (2, 4)),  # as text
        (296, (2, 9)),
        (305, (7, 0xFFFFFFF)),
        (33432, (99, 1)),
        (34665, (4, 1)),  # EXIF, that begins nowhere
        (34853, (2, 1)),
        (37510, (7, 0x7FFFFFFF)),
    ],
)
def test_odd_tags_that_only_describe(tag: tuple[int, tuple[int, int]]) -> None:
    data = bytearray(tiff_of(columns(*LEVELS), 1, tags={tag[0]: (4, [8])}))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] == tag[0]:
            struct.pack_into("<HI", data, place + 2, *tag[1])
    assert shown(bytes(data)) == greys(*LEVELS)


@ORDERS
@pytest.mark.parametrize(("extra", "last"), [(2, (255, 255, 255)), (0, (9, 99, 199))])
def test_a_palette_with_a_second_sample(order: str, extra: int, last: tuple[int, ...]) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 99, 199)]
    entries = np.zeros((3, 256), np.int64)
    entries[:, :4] = np.transpose(colours) * 257
    data = tiff_of(
        columns((0, 255), (1, 255), (2, 255), (3, 0)),
        3,
        order=order,
        extra=[extra],
        tags={320: (3, entries.ravel().tolist())},
    )
    assert shown(data) == [*colours[:3], last]


# Refused


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tiff_of(lab(np.uint8).astype(np.float32), 8), "32-bit floating-point Lab TIFF"),
        (tiff_of(columns(*LEVELS, dtype=np.uint16), 3, tags={320: (3, [0] * 768)}), "palette"),
        (tiff_of(columns((1, 2, 3), dtype=np.uint16), 6), "16-bit YCbCr TIFF"),
        (tiff_of(columns(1, dtype=np.uint16), 32803), "16-bit camera raw TIFF"),
        (tiff_of(columns(1, dtype=np.uint16), 1, compression=34712), "JPEG 2000 compression"),
        (tiff_of(columns(1, dtype=np.uint16), 1, tags={339: (3, [6])}), "16-bit complex grey TIFF"),
        (tiff_of(columns(1), 77), "8-bit photometric 77 TIFF"),
    ],
)
def test_what_is_not_read_is_refused_by_name(data: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=r"^init_image: .*supported$") as refusal:
        decode_image(data)
    assert kind in str(refusal.value)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("compression", [1, 8])
def test_a_deep_picture_that_is_cut_is_refused(compression: int, part: float) -> None:
    noise = np.random.default_rng(1).integers(0, 65535, (64, 64, 1), np.uint16)
    data = tiff_of(noise, 1, compression=compression, rows_per_strip=8)
    with pytest.raises(ImageError, match="truncated or corrupt"):
        decode_image(data[: int(len(data) * part)])


@pytest.mark.parametrize("start", [1, 2**31, 2**63, 2**64 - 1])
def test_a_directory_out_of_the_file(start: int) -> None:
    data = bytearray(tiff_of(columns(*LEVELS), 1, big=True))
    struct.pack_into("<Q", data, 8, start)
    with pytest.raises(ImageError, match=r"corrupt|width and height"):
        decode_image(data)


@pytest.mark.parametrize("size", [(0, 5), (60_000, 60_000)])
def test_sizes_that_cannot_be(size: tuple[int, int]) -> None:
    data = tiff_of(columns(1), 1, tags={256: (4, [size[0]]), 257: (4, [size[1]])})
    with pytest.raises(ImageError, match=r"width and height|over 100 megapixels"):
        decode_image(data)
