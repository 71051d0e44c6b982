"""A TIFF file's first directory, read within its bounds, and a clean file made from it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from server.images.files.png import MAX_PROFILE_BYTES

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 273, 277, 278, 279
ORIENTATION, PLANAR, PREDICTOR = 274, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339
_T4_OPTIONS, _T6_OPTIONS, _COLOUR_MAP, _JPEG_TABLES, _XMP, _ICC = 292, 293, 320, 347, 700, 34675
_SUBSAMPLING, _POSITIONING, _COEFFICIENTS, _BLACK_WHITE = 530, 531, 529, 532
_OLD_JPEG = (512, 513, 514, 515, 519, 520, 521)

_NUMBERS = frozenset(
    (
        *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, SAMPLES),
        *(ROWS_PER_STRIP, STRIP_COUNTS, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT),
        *(TILE_OFFSETS, TILE_COUNTS, EXTRA_SAMPLES, SAMPLE_FORMAT, ORIENTATION, _T4_OPTIONS),
        *(_T6_OPTIONS, _COLOUR_MAP, _SUBSAMPLING, _POSITIONING, *_OLD_JPEG),
    )
)
_BYTES = frozenset((_JPEG_TABLES, _XMP, _ICC, _COEFFICIENTS, _BLACK_WHITE))

_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""TIFF's types of whole numbers as struct formats."""

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_SIZES |= {16: 8, 17: 8, 18: 8}
_SHORT, _LONG, _RATIONAL, _UNDEFINED = 3, 4, 5, 7
TRUNCATED = "the TIFF is truncated or corrupt"


class TiffProblem(ValueError):
    """The file cannot be read; the message says why, and what kind of TIFF it is."""


@dataclass
class Tags:
    """The tags of the first directory that bear on the pixels. ``order`` is `<` or `>`."""

    order: str
    numbers: dict[int, tuple[int, ...]]
    texts: dict[int, bytes]

    def number(self, tag: int, default: int) -> int:
        """Return a tag's first value."""
        return self.numbers.get(tag, (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as stored. Raises TiffProblem where the file does not say."""
        size = self.number(WIDTH, 0), self.number(HEIGHT, 0)
        if min(size) < 1:
            raise TiffProblem("the TIFF does not say its width and height")
        return size

    @property
    def profile(self) -> bytes | None:
        profile = self.texts.get(_ICC)
        return profile if profile and len(profile) <= MAX_PROFILE_BYTES else None

    @property
    def xmp(self) -> bytes | None:
        return self.texts.get(_XMP)


def is_tiff(data: bytes) -> bool:
    return data[:2] in (b"II", b"MM") and data[2:4] in (b"*\x00", b"\x00*", b"+\x00", b"\x00+")


def read_tags(data: bytes) -> Tags:
    """Return the first directory. Tags of the wrong type are left out, texts out of the file too.

    Raises TiffProblem, also where numbers that bear on the pixels are out of the file.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = b"+" in data[2:4]
    # Classic: counts and offsets of 4 bytes; BigTIFF: of 8.
    word, count_format, head = ("Q", "Q", 8) if big else ("I", "H", 4)
    tags = Tags(order, {}, {})
    try:
        (start,) = struct.unpack_from(order + word, data, head)
        (count,) = struct.unpack_from(order + count_format, data, start)
    except (struct.error, OverflowError):
        raise TiffProblem(TRUNCATED) from None
    room = 8 if big else 4
    entry = 4 + 2 * room
    start += 8 if big else 2
    if start + count * entry > len(data):
        raise TiffProblem(TRUNCATED)
    for place in range(start, start + count * entry, entry):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        if tag not in _NUMBERS and tag not in _BYTES:
            continue
        (values,) = struct.unpack_from(order + word, data, place + 4)
        size = values * _TYPE_SIZES.get(kind, 0)
        at = place + 4 + room
        if size > room:
            (at,) = struct.unpack_from(order + word, data, at)
        if not size:
            continue
        if at + size > len(data):
            if tag in _NUMBERS:
                raise TiffProblem(TRUNCATED)
            continue
        if tag in _BYTES:
            tags.texts.setdefault(tag, data[at : at + size])
        elif kind in _TYPES:
            found = struct.unpack_from(f"{order}{values}{_TYPES[kind]}", data, at)
            tags.numbers.setdefault(tag, found)
    return tags


def clean_file(data: bytes, tags: Tags) -> bytes:
    """Return the file with a directory of its pixels alone, for a reader that applies no turn."""
    numbers = {tag: values for tag, values in tags.numbers.items() if tag != ORIENTATION}
    head = tiff_head(tags.order, len(data) + len(data) % 2)
    directory = tiff_directory(tags.order, len(data) + len(data) % 2, numbers, tags.texts)
    return b"".join((head, memoryview(data)[8:], b"\x00" * (len(data) % 2), directory))


def tiff_head(order: str, directory_at: int) -> bytes:
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, directory_at)


def tiff_directory(
    order: str, at: int, numbers: dict[int, tuple[int, ...]], texts: dict[int, bytes]
) -> bytes:
    """Return a directory that begins ``at`` that byte of its file, with its values behind it."""
    rows: dict[int, tuple[int, int, bytes]] = {}
    for tag, values in numbers.items():
        large = max(values) > 0xFFFF
        if max(values) > 0xFFFFFFFF:
            continue
        packed = struct.pack(f"{order}{len(values)}{'I' if large else 'H'}", *values)
        rows[tag] = (_LONG if large else _SHORT, len(values), packed)
    if tables := texts.get(_JPEG_TABLES):
        rows[_JPEG_TABLES] = (_UNDEFINED, len(tables), tables)
    for tag in (_COEFFICIENTS, _BLACK_WHITE):
        if packed := texts.get(tag, b""):
            rows[tag] = (_RATIONAL, len(packed) // 8, packed)
    entries, values_at, behind = [], at + 2 + 12 * len(rows) + 4, b""
    for tag in sorted(rows):
        kind, count, packed = rows[tag]
        if len(packed) > 4:
            offset = struct.pack(order + "I", values_at + len(behind))
            behind += packed + b"\x00" * (len(packed) % 2)
        else:
            offset = packed.ljust(4, b"\x00")
        entries.append(struct.pack(order + "HHI", tag, kind, count) + offset)
    return struct.pack(order + "H", len(rows)) + b"".join(entries) + b"\x00" * 4 + behind
