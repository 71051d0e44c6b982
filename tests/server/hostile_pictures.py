"""Small files that cost a decoder much time or memory.

Used by tests, and by `scripts/attack_pictures`, which measures them on a running server.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.server.pictures import file_of, png_chunk

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGE = (11_000, 9_000)
"""99 megapixels."""


def png_with(*chunks: bytes, behind: tuple[bytes, ...] = ()) -> bytes:
    """A grey PNG of 64 x 64 with chunks before and behind its pixels."""
    header = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\x00" + b"\x80" * 64) * 64)
    parts = (png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", rows), *behind)
    return _SIGNATURE + b"".join(parts) + png_chunk(b"IEND", b"")


def many_profiles() -> bytes:
    """500 ICC profiles that unpack to a megabyte each."""
    packed = zlib.compress(bytes(1 << 20), 9)
    return png_with(*[png_chunk(b"iCCP", b"a\x00\x00" + packed)] * 500)


def many_texts() -> bytes:
    """Compressed texts of every sort, a gigabyte of them when unpacked."""
    packed = zlib.compress(bytes(8 << 20), 9)
    texts = (
        png_chunk(b"zTXt", b"a\x00\x00" + packed),
        png_chunk(b"iTXt", b"a\x00\x01\x00\x00\x00" + packed),
        png_chunk(b"zTXt", b"Raw profile type exif\x00\x00" + packed),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x01\x00\x00\x00" + packed),
    )
    return png_with(*texts * 32)


def empty_chunks(kind: bytes = b"tEXt") -> bytes:
    """17 MiB of chunks with nothing in them."""
    return png_with(png_chunk(kind, b"") * (17 * 2**20 // 12))


def false_chunk_starts() -> bytes:
    """A damaged chunk, and then what looks like the beginning of the pixels, again and again."""
    bait = b"".join(struct.pack(">I4s", 4_000_000, b"IDAT") for _ in range(1_000_000))
    broken = png_chunk(b"pHYs", b"\x00" * 9)[:-4] + b"\x00" * 4
    return png_with(broken, png_chunk(b"teXt", bait))


def progressive_jpeg(scans: int = 1500, side: int = 4000) -> bytes:
    """A progressive JPEG with scans that each refine nothing, over all of its coefficients."""
    frame = struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0)
    # One code of one bit in each table: no difference; "so many blocks are finished".
    code = bytes((1, *bytes(15)))
    blocks = ((side + 7) // 8) ** 2
    most = 2**15 - 1
    bits = ("0" + "1" * 14) * -(-blocks // most)
    bits += "1" * (-len(bits) % 8)
    walk = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xDB, b"\x00" + b"\x01" * 64),
            _segment(0xC2, frame),
            _segment(0xC4, b"\x00" + code + b"\x00"),
            _segment(0xC4, b"\x10" + code + b"\xe0"),
            _segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + bytes(blocks // 8 + 1),
            (_segment(0xDA, b"\x01\x01\x00\x01\x3f\x10") + walk) * scans,
            b"\xff\xd9",
        )
    )


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def large_palette(size: tuple[int, int] = _LARGE) -> bytes:
    """A palette with transparency: 99 megapixels in a few kilobytes."""
    image = Image.new("P", size, 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    return file_of(image, transparency=bytes((0, 128)), compress_level=9)


def large_lab() -> bytes:
    """99 megapixels of Lab in a TIFF of under half a megabyte."""
    return file_of(
        Image.new("LAB", _LARGE, (128, 128, 128)), "TIFF", compression="tiff_adobe_deflate"
    )


def webp_animation() -> bytes:
    """An animation of many frames of 100 megapixels."""
    frame = Image.new("RGB", (9_900, 9_900))
    still = file_of(frame, "WEBP", lossless=True)
    place = still.index(b"VP8L")
    sides = (9_899).to_bytes(3, "little") * 2
    header = bytes(6) + sides + bytes(4)
    payload = header + still[place:]
    chunks = b"VP8X" + struct.pack("<I", 10) + bytes((2, 0, 0, 0)) + sides
    chunks += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    chunks += (b"ANMF" + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)) * 50
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def gif_animation() -> bytes:
    """A GIF whose screen has 99 megapixels, with 200 frames."""
    frames = [Image.new("P", (64, 64), n % 2) for n in range(200)]
    for frame in frames:
        frame.putpalette([10, 20, 30, 200, 0, 0])
    data = bytearray(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    data[6:10] = struct.pack("<HH", *_LARGE)
    return bytes(data)


def tiff_of(entries: dict[int, tuple[int, list[int]]], pixels: bytes, order: str = "<") -> bytes:
    """A TIFF file with these tags, (type, values) by number; 273 is filled in with the place of
    the pixels where it has none."""
    sizes = {1: "B", 3: "H", 4: "I"}
    start = 8 + 2 + 12 * len(entries) + 4
    behind, rows = b"", b""
    for tag in sorted(entries):
        kind, values = entries[tag]
        if tag == 273 and not values:
            values = [-1]
        size = struct.calcsize(sizes[kind]) * len(values)
        packed = (
            b"" if values == [-1] else struct.pack(f"{order}{len(values)}{sizes[kind]}", *values)
        )
        rows += struct.pack(f"{order}HHI", tag, kind, len(values))
        if values == [-1]:
            rows += b"PLAC"
        elif size <= 4:
            rows += packed.ljust(4, b"\x00")
        else:
            rows += struct.pack(f"{order}I", start + len(behind))
            behind += packed + b"\x00" * (len(packed) % 2)
    rows = rows.replace(b"PLAC", struct.pack(f"{order}I", start + len(behind)))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(entries)) + rows + b"\x00" * 4 + behind + pixels


def tiff_huge_tiles() -> bytes:
    """A small TIFF with one tile of gigabytes."""
    pixels = zlib.compress(bytes(1 << 20))
    tags = {
        256: (4, [64]),
        257: (4, [64]),
        258: (3, [8]),
        259: (3, [8]),
        262: (3, [1]),
        277: (3, [1]),
        322: (4, [60_000]),
        323: (4, [60_000]),
        324: (4, [0]),
        325: (4, [len(pixels)]),
    }
    return tiff_of(tags, pixels)


def tiff_many_strips() -> bytes:
    """A TIFF of two million strips, all of them the same bytes."""
    pixels = zlib.compress(bytes(50))
    count = 2_000_000
    tags = {
        256: (4, [50]),
        257: (4, [count]),
        258: (3, [8]),
        259: (3, [8]),
        262: (3, [1]),
        273: (4, [8] * count),
        277: (3, [1]),
        278: (4, [1]),
        279: (4, [len(pixels)] * count),
    }
    return tiff_of(tags, pixels)


def tiff_many_directories() -> bytes:
    """A TIFF with 100,000 directories, the last of which points to the first."""
    data = bytearray(file_of(Image.new("L", (64, 64), 128), "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, len(data))
    for n in range(100_000):
        onward = start if n == 99_999 else len(data) + 18
        data += struct.pack("<HHHIII", 1, 256, 4, 1, 64, onward)
    return bytes(data)


ATTACKS: dict[str, Callable[[], bytes]] = {
    "progressive JPEG, 1,500 scans": progressive_jpeg,
    "PNG, 500 profiles": many_profiles,
    "PNG, a gigabyte of texts": many_texts,
    "PNG, 17 MiB of empty chunks": empty_chunks,
    "PNG, false chunk starts": false_chunk_starts,
    "PNG, 99 MP palette": large_palette,
    "TIFF, 99 MP Lab": large_lab,
    "TIFF, huge tiles": tiff_huge_tiles,
    "TIFF, two million strips": tiff_many_strips,
    "TIFF, 100,000 directories": tiff_many_directories,
    "WebP, animation of 98 MP": webp_animation,
    "GIF, animation of 99 MP": gif_animation,
}
