"""The first frame of a WebP file as a file of its own, and the metadata apart from it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

FIRST_CHUNK = 12
"""Where it begins, behind `RIFF`, the size and `WEBP`."""
_FRAME_HEADER = 16
_MOST_CHUNKS = 5000
_MOST_CANDIDATES = 64
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9 ]{3}")
_KNOWN = re.compile(rb"VP8 |VP8L|ALPH|ANMF")
_ALPHA_FLAG = 0x10


@dataclass
class WebP:
    """A still file, where its picture lies on the canvas, and what else bears on the pixels."""

    data: bytes
    size: tuple[int, int]
    canvas: tuple[int, int]
    offset: tuple[int, int]
    profile: bytes | None
    exif: bytes | None
    xmp: bytes | None


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_webp(data: bytes) -> WebP | None:
    """Return the first frame of a WebP file, or None where there is none."""
    found: dict[bytes, bytes] = {}
    offset = (0, 0)
    place, seen = FIRST_CHUNK, 0
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        end = place + 8 + length + (length & 1)
        seen += 1
        known = _KNOWN.fullmatch(kind)
        if not known and (seen > _MOST_CHUNKS or not _leads_on(data, end)):
            # A damaged length, or chunks without end: search for the picture, unless it is there.
            if _has_pixels(found) or (place := _next_known(data, place + 8)) < 0:
                break
            continue
        payload = data[place + 8 : place + 8 + length]
        if known and len(payload) < length and not _has_pixels(found):
            return None
        if kind == b"ANMF" and not _has_pixels(found):
            if len(payload) < _FRAME_HEADER:
                return None
            offset = (2 * _three_bytes(payload, 0), 2 * _three_bytes(payload, 3))
            found |= _frame_chunks(payload[_FRAME_HEADER:])
        else:
            found.setdefault(kind, payload)
        place = end
    pixels = found.get(b"VP8 ") or found.get(b"VP8L")
    kind = b"VP8 " if found.get(b"VP8 ") else b"VP8L"
    size = None if pixels is None else _size(kind, pixels)
    if pixels is None or size is None:
        return None
    header = found.get(b"VP8X", b"")
    canvas = (
        (_three_bytes(header, 4) + 1, _three_bytes(header, 7) + 1) if len(header) >= 10 else size
    )
    return WebP(
        data=_still(kind, pixels, size, found.get(b"ALPH")),
        size=size,
        canvas=canvas,
        offset=offset,
        profile=found.get(b"ICCP"),
        exif=found.get(b"EXIF"),
        xmp=found.get(b"XMP "),
    )


def _leads_on(data: bytes, end: int) -> bool:
    """Return whether a chunk that ends there is followed by another one, or by nothing."""
    if len(data) in (end - 1, end):
        return True
    return bool(_NAME.match(data, end)) and _fits(data, end)


def _next_known(data: bytes, start: int) -> int:
    """Return where the next chunk with pixels begins, -1 without one."""
    matches = islice(_KNOWN.finditer(data, start), _MOST_CANDIDATES)
    return next((match.start() for match in matches if _fits(data, match.start())), -1)


def _fits(data: bytes, place: int) -> bool:
    """Return whether the chunk that begins there ends within the file."""
    return place + 8 + int.from_bytes(data[place + 4 : place + 8], "little") <= len(data)


def _has_pixels(found: dict[bytes, bytes]) -> bool:
    return b"VP8 " in found or b"VP8L" in found


def chunks(data: bytes, place: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each chunk's payload from ``place`` on; the last may be cut."""
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        start, end = place + 8, place + 8 + length
        yield kind, start, end
        place = end + (length & 1)


def _frame_chunks(payload: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for kind, start, end in chunks(payload, 0):
        if end > len(payload) or _has_pixels(found):
            break
        found.setdefault(kind, payload[start:end])
    return {kind: found[kind] for kind in (b"ALPH", b"VP8 ", b"VP8L") if kind in found}


def _size(kind: bytes, pixels: bytes) -> tuple[int, int] | None:
    if kind == b"VP8 " and len(pixels) >= 10:
        width, height = struct.unpack_from("<HH", pixels, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(pixels) >= 5:
        (bits,) = struct.unpack_from("<I", pixels, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _still(kind: bytes, pixels: bytes, size: tuple[int, int], alpha: bytes | None) -> bytes:
    chunks = b""
    if alpha is not None and kind == b"VP8 ":
        sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
        chunks = _chunk(b"VP8X", bytes((_ALPHA_FLAG, 0, 0, 0)) + sides) + _chunk(b"ALPH", alpha)
    chunks += _chunk(kind, pixels)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + b"\x00" * (len(payload) & 1)


def _three_bytes(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 3], "little")
