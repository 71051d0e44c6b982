"""What only decorates a picture never loses it, and what is transparent is, in every format."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from server.errors import ImageError
from server.images.decode import decode_image
from tests.server.hostile_pictures import (
    empty_chunks,
    false_chunk_starts,
    many_profiles,
    many_texts,
)
from tests.server.pictures import (
    assert_upright,
    file_of,
    four_corners,
    gradient,
    max_difference,
    png_chunk,
)
from tests.server.test_colour import wide_profile

# As in the server, which has a filter of its own; pytest resets that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

PNG_HEAD = 33
"""Bytes of a PNG up to the end of its IHDR."""

LARGE = zlib.compress(bytes(1_300_000), 9)
HUGE = zlib.compress(bytes(80_000_000), 9)


def png_with(*chunks: bytes, behind: bool = False, picture: Image.Image | None = None) -> bytes:
    """The four corners with chunks before or behind their pixels."""
    data = file_of(picture or four_corners())
    place = data.index(b"IEND") - 4 if behind else PNG_HEAD
    return data[:place] + b"".join(chunks) + data[place:]


def damaged(chunk: bytes) -> bytes:
    """The chunk with a wrong checksum."""
    return chunk[:-1] + bytes((chunk[-1] ^ 1,))


def misnumbered(chunk: bytes, length: int) -> bytes:
    """The chunk with a wrong length."""
    return struct.pack(">I", length) + chunk[4:]


# PNG


TEXTS = {
    "zTXt": b"a\x00\x00" + LARGE,
    "iTXt": b"a\x00\x01\x00\x00\x00" + LARGE,
    "tEXt": b"a\x00" + b"b" * 1_300_000,
    "iCCP": b"a\x00\x00" + LARGE,
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("behind", [False, True])
def test_large_texts_and_profiles(kind: str, count: int, behind: bool) -> None:
    if kind == "tEXt":
        count = min(count, 10)
    chunks = [png_chunk(kind.encode(), TEXTS[kind])] * count
    assert_upright(decode_image(png_with(*chunks, behind=behind)))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
@pytest.mark.parametrize("name", [b"a", b"Raw profile type exif", b"XML:com.adobe.xmp"])
def test_texts_that_unpack_to_more_than_is_read(kind: str, name: bytes) -> None:
    head = b"\x00\x01\x00\x00\x00" if kind == "iTXt" else b"\x00\x00"
    assert_upright(decode_image(png_with(png_chunk(kind.encode(), name + head + HUGE))))


@pytest.mark.parametrize("make", [many_profiles, many_texts, empty_chunks, false_chunk_starts])
def test_chunks_without_end(make: object) -> None:
    assert callable(make)
    assert decode_image(make()).getpixel((9, 9)) == (128, 128, 128)


ANCILLARY = [
    *(b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tIME", b"eXIf", b"iCCP", b"bKGD", b"hIST", b"sBIT"),
    *(b"sPLT", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"caBX", b"CgBI", b"tRNS"),
]


@pytest.mark.parametrize("kind", ANCILLARY)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 9, 13, 33])
@pytest.mark.parametrize("behind", [False, True])
def test_ancillary_chunks_of_odd_lengths(kind: bytes, size: int, behind: bool) -> None:
    if kind == b"tRNS":
        size = min(size, 5)  # six bytes are a colour
    chunk = png_chunk(kind, b"\xfe" * size)
    assert_upright(decode_image(png_with(chunk, behind=behind)))


@pytest.mark.parametrize("kind", ANCILLARY)
def test_ancillary_chunks_with_a_wrong_checksum(kind: bytes) -> None:
    assert_upright(decode_image(png_with(damaged(png_chunk(kind, b"\x01" * 9)))))


@pytest.mark.parametrize("length", [0, 5, 8, 10, 12, 30, 5000, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("kind", [b"pHYs", b"tEXt", b"iCCP", b"zzZz"])
def test_ancillary_chunks_with_a_wrong_length(kind: bytes, length: int) -> None:
    chunk = misnumbered(png_chunk(kind, b"\x01" * 9), length)
    assert_upright(decode_image(png_with(chunk)))


def test_what_follows_a_damaged_chunk_still_counts() -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    profile = png_chunk(b"iCCP", b"a\x00\x00" + zlib.compress(wide_profile()))
    broken = misnumbered(png_chunk(b"pHYs", bytes(9)), 5000)
    decoded = decode_image(png_with(broken, profile, picture=image))
    assert np.abs(np.subtract(decoded.getpixel((4, 4)), (0, 255, 0))).max() <= 2


def test_a_palette_of_a_picture_without_one_only_suggests() -> None:
    assert_upright(decode_image(png_with(damaged(png_chunk(b"PLTE", b"\x01" * 7)))))


@pytest.mark.parametrize(
    ("where", "reason"),
    [(b"IHDR", r"header chunk \(IHDR\)"), (b"PLTE", r"palette \(PLTE\)")],
)
def test_a_damaged_critical_chunk_is_named(where: bytes, reason: str) -> None:
    data = bytearray(file_of(four_corners().quantize(4)))
    data[data.index(where) + 5] ^= 1
    with pytest.raises(ImageError, match=rf"^init_image: the picture is corrupt: its {reason}"):
        decode_image(data)


def test_a_png_without_pixels_is_refused() -> None:
    data = file_of(four_corners())
    with pytest.raises(ImageError, match=r"no image data \(IDAT\)"):
        decode_image(data[: data.index(b"IDAT") - 4])


@pytest.mark.parametrize("cut", [0.4, 0.8, 0.95])
def test_cut_pixels_are_refused(cut: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    data = file_of(Image.fromarray(noise))
    with pytest.raises(ImageError, match="truncated or corrupt"):
        decode_image(data[: int(len(data) * cut)])


def test_the_default_image_of_an_animation() -> None:
    black = Image.new("RGB", (64, 48))
    data = file_of(four_corners(), save_all=True, append_images=[black, black])
    assert b"acTL" in data
    assert_upright(decode_image(data))


def test_pixels_in_many_chunks() -> None:
    data = file_of(four_corners())
    start = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, start)
    pixels = data[start + 8 : start + 8 + length]
    pieces = b"".join(png_chunk(b"IDAT", pixels[n : n + 1]) for n in range(length))
    assert_upright(decode_image(data[:start] + pieces + data[start + 12 + length :]))


# Transparency by key


def keyed_png(depth: int, colour: bool, pixels: list[tuple[int, ...]], key: bytes) -> bytes:
    """One row of grey or RGB in any bit depth, with a tRNS chunk."""
    header = struct.pack(">IIBBBBB", len(pixels), 1, depth, 2 if colour else 0, 0, 0, 0)
    bits = "".join(format(sample, f"0{depth}b") for pixel in pixels for sample in pixel)
    bits += "0" * (-len(bits) % 8)
    row = b"\x00" + int(bits, 2).to_bytes(len(bits) // 8)
    chunks = ((b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("place", [0, 1])
def test_transparent_grey_of_every_depth(depth: int, place: int) -> None:
    most = 2**depth - 1
    levels = (0, most) if depth < 8 else (7, most // 3 + 1)
    key = struct.pack(">H", levels[place])
    picture = decode_image(keyed_png(depth, False, [(level,) for level in levels], key))
    shown = [picture.getpixel((x, 0))[0] for x in range(2)]  # type: ignore[index]
    expected = [round(level * 255 / most) for level in levels]
    expected[place] = 255
    assert shown == expected


@pytest.mark.parametrize("depth", [2, 4])
def test_each_level_of_grey_can_be_the_transparent_one(depth: int) -> None:
    levels = range(2**depth)
    for key in levels:
        data = keyed_png(depth, False, [(n,) for n in levels], struct.pack(">H", key))
        picture = decode_image(data)
        step = 255 // (2**depth - 1)
        assert [picture.getpixel((n, 0))[0] for n in levels] == [  # type: ignore[index]
            255 if n == key else n * step for n in levels
        ]


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_of_every_depth(depth: int) -> None:
    scale = 257 if depth == 16 else 1
    pixels = [(200 * scale, 10 * scale, 10 * scale), (10 * scale, 200 * scale, 10 * scale)]
    data = keyed_png(depth, True, pixels, struct.pack(">3H", *pixels[0]))
    picture = decode_image(data)
    assert [picture.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (10, 200, 10)]


def test_colours_that_are_equal_in_their_upper_bytes_are_not_the_same() -> None:
    pixels = [(0x1200, 0x3400, 0x5600), (0x1200, 0x3400, 0x5601), (0x1201, 0x3400, 0x5600)]
    picture = decode_image(keyed_png(16, True, pixels, struct.pack(">3H", *pixels[0])))
    shown = [picture.getpixel((x, 0)) for x in range(3)]
    assert shown == [(255, 255, 255), (0x12, 0x34, 0x56), (0x12, 0x34, 0x56)]


def test_greys_that_are_equal_in_their_upper_bytes_are_not_the_same() -> None:
    pixels = [(0x1200,), (0x1201,)]
    picture = decode_image(keyed_png(16, False, pixels, struct.pack(">H", 0x1200)))
    assert [picture.getpixel((x, 0))[0] for x in range(2)] == [255, 0x12]  # type: ignore[index]


def test_transparent_parts_of_a_picture_that_is_shrunk_do_not_bleed() -> None:
    image = Image.new("P", (6200, 6200), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 3101, 6200))
    shown = decode_image(file_of(image, transparency=0))
    assert set(dict(map(reversed, shown.getcolors() or []))) <= {  # type: ignore[arg-type]
        *((0, 0, 255), (255, 255, 255), (128, 128, 255), (127, 127, 255)),
    }


# EXIF, XMP and JFIF


def exif_of(tag: int, kind: int, count: int, value: int) -> bytes:
    """An EXIF block with one more tag behind an orientation of 1."""
    rows = struct.pack("<HHII", 0x0112, 3, 1, 1) + struct.pack("<HHII", tag, kind, count, value)
    return b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, 2) + rows + struct.pack("<I", 8)


ODD_EXIF = {
    "a resolution of 0/0": exif_of(0x011A, 5, 1, 38) + bytes(8),
    "a resolution in words": exif_of(0x011A, 2, 4, 0x61626364),
    "a resolution out of the file": exif_of(0x011A, 5, 1, 0x7FFFFFFF),
    "a unit in words": exif_of(0x0128, 2, 4, 0x61626364),
    "a directory in a circle": exif_of(0x8769, 4, 1, 8),
    "a directory in words": exif_of(0x8769, 2, 4, 0x61626364),
    "a place in a circle": exif_of(0x8825, 4, 1, 8),
    "an unknown type": exif_of(0x010F, 99, 1, 0),
    "more values than there are bytes": exif_of(0x010F, 2, 0x7FFFFFFF, 8),
    "a thumbnail out of the file": exif_of(0x0201, 4, 1, 0x7FFFFFFF),
    "no directory": b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
    "no TIFF": b"Exif\x00\x00what is this?",
    "nothing": b"Exif\x00\x00",
    "a cut head": b"Exif\x00\x00MM\x00",
}


@pytest.mark.parametrize("what", ODD_EXIF)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_odd_exif(file_format: str, what: str) -> None:
    exif = ODD_EXIF[what]
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
    if file_format == "PNG":
        data = png_with(png_chunk(b"eXIf", exif.removeprefix(b"Exif\x00\x00")))
    else:
        data = file_of(four_corners(), file_format, exif=exif, **options[file_format])
    assert_upright(decode_image(data), 8 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("what", ODD_EXIF)
@pytest.mark.parametrize("file_format", ["AVIF", "HEIF"])
def test_odd_exif_in_boxes(file_format: str, what: str) -> None:
    # Encoders rewrite what they are given, so the block is put in afterwards.
    odd = ODD_EXIF[what].removeprefix(b"Exif\x00\x00")
    odd = odd.replace(struct.pack("<HHII", 0x0112, 3, 1, 1), struct.pack("<HHII", 0x0112, 3, 1, 6))
    stand_in = b"II*\x00" + struct.pack("<IHI", 8, 0, 0) + b"Z" * 80
    exif = b"Exif\x00\x00" + stand_in
    if file_format == "AVIF":
        if not features.check("avif"):
            pytest.skip("Pillow without AVIF")
        data = file_of(four_corners(), "AVIF", exif=exif, quality=95)
    else:
        heif = pytest.importorskip("pillow_heif")
        buffer = io.BytesIO()
        heif.from_pillow(four_corners()).save(buffer, quality=95, exif=exif)
        data = buffer.getvalue()
    assert stand_in in data
    data = data.replace(stand_in, odd.ljust(len(stand_in), b"\x00"))
    assert_upright(decode_image(data), 12)


def with_segment(marker: int, payload: bytes, length: int | None = None) -> bytes:
    """A JPEG whose first segment is this one."""
    data = file_of(four_corners(), "JPEG", quality=95)
    declared = len(payload) + 2 if length is None else length
    return data[:2] + struct.pack(">BBH", 0xFF, marker, declared) + payload + data[2:]


@pytest.mark.parametrize(
    "data",
    [
        with_segment(0xE0, b"JFIF\x00"),
        with_segment(0xE0, b"JFIF\x00\x01\x01\x07\x00\x00\x00\x00\xff\xff"),
        with_segment(0xE0, b"JFXX\x00\x10" + b"\xff\xd8\xff\xda"),
        with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\x00<x:xmpmeta" * 100),
        with_segment(0xE2, b"MPF\x00II*\x00\x08\x00\x00\x00\xff\xff"),
        with_segment(0xE2, b"ICC_PROFILE\x00\x01\x09" + b"a" * 100),
        with_segment(0xE2, b"ICC_PROFILE\x00"),
        with_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\x00\x00\x00\x00\x00\x02ab"),
        with_segment(0xEE, b"Adobe"),
        with_segment(0xFE, b"", 2),
        with_segment(0xFE, b"", 0),
        with_segment(0xE5, b"abc", 1),
    ],
)
def test_odd_segments(data: bytes) -> None:
    assert_upright(decode_image(data), 8)


def test_a_file_of_several_pictures_shows_its_first() -> None:
    buffer = io.BytesIO()
    black = Image.new("RGB", (64, 48))
    four_corners().save(buffer, "MPO", save_all=True, append_images=[black], quality=95)
    assert_upright(decode_image(buffer.getvalue()), 8)


def test_a_profile_in_parts() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = wide_profile()
    assert len(profile) == len(wide)
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    data = file_of(image, "JPEG", quality=95)
    parts = [wide[:100], wide[100:]]
    segments = b"".join(
        struct.pack(">HH", 0xFFE2, len(part) + 16) + b"ICC_PROFILE\x00" + bytes((n, 2)) + part
        for n, part in ((2, parts[1]), (1, parts[0]))
    )
    decoded = decode_image(data[:2] + segments + data[2:])
    assert np.abs(np.subtract(decoded.getpixel((8, 8)), (0, 255, 0))).max() <= 3


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_orientation_by_xmp(file_format: str) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    turned = four_corners().transpose(Image.Transpose.ROTATE_180)
    if file_format == "PNG":
        chunk = png_chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x00\x00\x00\x00" + xmp)
        data = png_with(chunk, picture=turned)
    else:
        options = {"quality": 95} if file_format == "JPEG" else {"lossless": True}
        data = file_of(turned, file_format, xmp=xmp, **options)
    assert_upright(decode_image(data), 8 if file_format == "JPEG" else 0)


def test_orientation_by_the_text_of_imagemagick() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    text = exif.tobytes().hex()
    lines = "\n".join(text[n : n + 72] for n in range(0, len(text), 72))
    body = f"\nexif\n{len(text) // 2:8}\n{lines}\n".encode()
    chunk = png_chunk(b"zTXt", b"Raw profile type exif\x00\x00" + zlib.compress(body))
    turned = four_corners().transpose(Image.Transpose.ROTATE_180)
    assert_upright(decode_image(png_with(chunk, picture=turned)))


# WebP


def webp_with(kind: bytes, payload: bytes, length: int | None = None) -> bytes:
    """A WebP file with a chunk before its pixels."""
    still = file_of(four_corners(), "WEBP", lossless=True)
    declared = len(payload) if length is None else length
    extra = kind + struct.pack("<I", declared) + payload + bytes(len(payload) % 2)
    header = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\x3f\x00\x00\x2f\x00\x00"
    chunks = header + extra + still[12:]
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


@pytest.mark.parametrize("kind", [b"ICCP", b"EXIF", b"XMP ", b"zzzz"])
@pytest.mark.parametrize("length", [None, 0, 3, 50_000, 2**31, 2**32 - 1])
def test_webp_chunks_that_only_decorate(kind: bytes, length: int | None) -> None:
    assert_upright(decode_image(webp_with(kind, b"not at all", length)))


def test_webp_frame_smaller_than_its_canvas() -> None:
    frames = [four_corners().convert("RGBA"), four_corners().convert("RGBA")]
    data = bytearray(file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    if b"ANMF" not in data:
        black = Image.new("RGBA", (64, 48), "black")
        data = bytearray(
            file_of(frames[0], "WEBP", save_all=True, append_images=[black], lossless=True)
        )
    # A canvas of 128 x 96, and the frame at (32, 16).
    place = data.index(b"VP8X")
    data[place + 12 : place + 18] = (127).to_bytes(3, "little") + (95).to_bytes(3, "little")
    place = data.index(b"ANMF") + 8
    data[place : place + 6] = (16).to_bytes(3, "little") + (8).to_bytes(3, "little")
    decoded = decode_image(data)
    assert decoded.size == (128, 96)
    assert decoded.getpixel((5, 5)) == decoded.getpixel((120, 90)) == (255, 255, 255)
    assert_upright(decoded.crop((32, 16, 96, 64)), 12)


def test_webp_with_damaged_pixels_is_refused() -> None:
    data = bytearray(file_of(gradient(64, 48), "WEBP", lossless=True))
    data[32:] = bytes(len(data) - 32)
    with pytest.raises(ImageError, match=r"corrupt"):
        decode_image(data)


def test_webp_alpha_beside_lossy_colour() -> None:
    image = Image.new("RGBA", (64, 48), (200, 10, 10, 255))
    image.paste((200, 10, 10, 0), (32, 0, 64, 48))
    decoded = decode_image(file_of(image, "WEBP", quality=95))
    assert decoded.getpixel((50, 20)) == (255, 255, 255)
    assert np.abs(np.subtract(decoded.getpixel((10, 20)), (200, 10, 10))).max() <= 8


# BMP


def bmp_of(pixels: list[int], masks: tuple[int, int, int, int], size: int = 124) -> bytes:
    """One row of 32-bit pixels under masks for red, green, blue and alpha."""
    header = struct.pack(
        "<IiiHHIIiiII", size, len(pixels), 1, 1, 32, 3, 4 * len(pixels), 0, 0, 0, 0
    )
    header = (header + struct.pack("<4I", *masks)).ljust(size, b"\x00")
    offset = 14 + len(header)
    body = struct.pack(f"<{len(pixels)}I", *pixels)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + body


MASKS = pytest.mark.parametrize(
    "masks",
    [
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    ],
)


def bmp_pixel(colour: tuple[int, ...], masks: tuple[int, ...]) -> int:
    shifts = [(mask & -mask).bit_length() - 1 for mask in masks]
    return sum(value << shift for value, shift in zip(colour, shifts, strict=True))


@MASKS
@pytest.mark.parametrize("size", [108, 124])
def test_bmp_whose_alpha_is_empty_is_opaque(masks: tuple[int, int, int, int], size: int) -> None:
    colours = [(200, 10, 10, 0), (0, 0, 0, 0), (10, 200, 10, 0)]
    data = bmp_of([bmp_pixel(colour, masks) for colour in colours], masks, size)
    picture = decode_image(data)
    assert [picture.getpixel((x, 0)) for x in range(3)] == [colour[:3] for colour in colours]


@MASKS
def test_bmp_with_alpha(masks: tuple[int, int, int, int]) -> None:
    colours = [(200, 10, 10, 0), (0, 0, 0, 255), (10, 200, 10, 255)]
    data = bmp_of([bmp_pixel(colour, masks) for colour in colours], masks)
    picture = decode_image(data)
    shown = [picture.getpixel((x, 0)) for x in range(3)]
    assert shown == [(255, 255, 255), (0, 0, 0), (10, 200, 10)]


# GIF


def gif_on_screen(
    screen: tuple[int, int], place: tuple[int, int], transparency: int | None = None
) -> bytes:
    """The four corners at a place of a larger screen."""
    image = four_corners().quantize(4)
    options = {} if transparency is None else {"transparency": transparency}
    data = bytearray(file_of(image, "GIF", **options))
    data[6:10] = struct.pack("<HH", *screen)
    frame = data.index(b"\x2c\x00\x00\x00\x00\x40\x00\x30\x00")
    data[frame + 1 : frame + 5] = struct.pack("<HH", *place)
    return bytes(data)


@pytest.mark.parametrize("place", [(0, 0), (32, 16), (64, 48)])
def test_gif_frame_smaller_than_its_screen_lies_on_white(place: tuple[int, int]) -> None:
    decoded = decode_image(gif_on_screen((128, 96), place))
    assert decoded.size == (128, 96)
    expected = Image.new("RGB", (128, 96), "white")
    expected.paste(four_corners(), place)
    assert max_difference(decoded, expected) == 0


def test_gif_frame_with_a_transparent_colour_on_a_larger_screen() -> None:
    index = four_corners().quantize(4).getpixel((0, 0))
    assert isinstance(index, int)
    decoded = decode_image(gif_on_screen((128, 96), (10, 10), index))
    expected = Image.new("RGB", (128, 96), "white")
    expected.paste(four_corners(), (10, 10))
    expected.paste("white", (10, 10, 42, 34))
    assert max_difference(decoded, expected) == 0


# Reasons


def test_a_kind_that_is_not_read_is_not_called_unknown() -> None:
    data = bytearray(file_of(four_corners(), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12  # bits a sample
    with pytest.raises(ImageError, match="this kind of JPEG is not supported"):
        decode_image(data)
