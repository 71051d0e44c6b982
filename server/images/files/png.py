"""A PNG file without what only decorates it: no such chunk can lose or delay the picture."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3

MAX_PROFILE_BYTES = 8 * 1024 * 1024
"""Bytes of an ICC profile or of other metadata that are read, unpacked; beyond, it is ignored."""

_MOST_ANCILLARY = 5000
"""Ancillary chunks that are looked at; behind them the next chunk of the picture is searched."""

_PIECE_BYTES = 1 << 20
_SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, 4: 2, 6: 4}
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
    (0, 1, 1, 2),
)
"""The passes of an interlaced picture: its first column and row, and the distance to the next."""

_MOST_CANDIDATES = 64
_CRITICAL = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_KNOWN = re.compile(rb"PLTE|IDAT|IEND|tRNS|iCCP|eXIf")
_RAW_EXIF = b"Raw profile type exif"
_XMP = b"XML:com.adobe.xmp"


class PngProblem(ValueError):
    """The file cannot be a picture; the message says which critical part is damaged."""


@dataclass
class Png:
    """The critical chunks as a file of their own, and what else bears on the pixels.

    ``key`` is the transparent grey or colour, in the file's own bit depth. ``packed`` is the
    pixels' data, ``sound`` whether its checksums hold.
    """

    data: bytes
    packed: bytes
    sound: bool
    bit_depth: int
    colour_type: int
    key: tuple[int, ...] | None
    profile: bytes | None
    exif: bytes | None
    xmp: bytes | None

    @property
    def is_whole(self) -> bool:
        """Return whether the pixels' checksums hold and there are as many as the header says.

        Decoders look at neither, and leave rows that are missing black. Unpacks as many bytes as
        the picture has: not before its size was looked at.
        """
        missing = self._raw_bytes()
        unpacker, piece, packed = zlib.decompressobj(), b"-", self.packed
        try:
            # It may hold back some of what it has unpacked, also when it was given everything.
            while self.sound and missing > 0 and (piece or packed):
                piece = unpacker.decompress(packed, _PIECE_BYTES)
                packed = unpacker.unconsumed_tail
                missing -= len(piece)
        except zlib.error:
            return False
        return self.sound and missing <= 0

    def _raw_bytes(self) -> int:
        """Return the bytes of the unpacked rows with their filters' numbers."""
        width, height = struct.unpack_from(">II", self.data, 16)
        interlaced = self.data[28] != 0
        bits = self.bit_depth * _SAMPLES.get(self.colour_type, 1)
        total = 0
        for left, top, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
            columns, rows = -(-(width - left) // across), -(-(height - top) // down)
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * bits + 7) // 8)
        return total


@dataclass
class _Found:
    """Payloads by what they are."""

    palette: bytes | None = None
    transparency: bytes | None = None
    profile: bytes | None = None
    exif: bytes | None = None
    raw_exif: bytes | None = None
    xmp: bytes | None = None
    pixels: list[bytes] = field(default_factory=list)
    sound: bool = True


def read_png(data: bytes) -> Png:
    """Return what of a PNG file is needed. Raises PngProblem."""
    header = data[8:33]
    if len(header) < 25 or header[:8] != b"\x00\x00\x00\x0dIHDR" or not _is_sound(data, 8, 13):
        raise PngProblem("its header chunk (IHDR) is damaged")
    bit_depth, colour_type = header[16], header[17]
    found = _collect(data)
    if not found.pixels:
        raise PngProblem("it has no image data (IDAT)")
    chunks = [SIGNATURE, header]
    if colour_type == PALETTE:
        if not found.palette:
            raise PngProblem("its palette (PLTE) is missing or damaged")
        chunks.append(_chunk(b"PLTE", found.palette[: len(found.palette) // 3 * 3][:768]))
        if found.transparency:
            chunks.append(_chunk(b"tRNS", found.transparency[:256]))
    pixels = b"".join(found.pixels)
    chunks += [_chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    return Png(
        data=b"".join(chunks),
        packed=pixels,
        sound=found.sound,
        bit_depth=bit_depth,
        colour_type=colour_type,
        key=_key(found.transparency, bit_depth, colour_type),
        profile=found.profile,
        exif=found.exif or found.raw_exif,
        xmp=found.xmp,
    )


def _collect(data: bytes) -> _Found:
    found = _Found()
    for kind, payload, sound in chunks(data):
        if kind == b"IDAT":
            found.pixels.append(payload)
            found.sound = found.sound and (sound or not payload)
        elif not sound:
            continue
        elif kind == b"PLTE" and found.palette is None:
            found.palette = payload
        elif kind == b"tRNS" and found.transparency is None:
            found.transparency = payload
        elif kind == b"eXIf" and found.exif is None:
            found.exif = payload
        elif kind == b"iCCP" and found.profile is None:
            # An empty one if it is unsound: the next ones are not tried.
            found.profile = _unpacked(payload.partition(b"\x00")[2][1:])
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            _collect_text(found, kind, payload)
    return found


def _collect_text(found: _Found, kind: bytes, payload: bytes) -> None:
    """Keep the two texts in which programs store EXIF and XMP."""
    name, _, rest = payload.partition(b"\x00")
    if name == _RAW_EXIF and found.raw_exif is None and kind != b"iTXt":
        text = rest if kind == b"tEXt" else _unpacked(rest[1:])
        lines = text.split(b"\n")[3:]  # an empty one, the name, the length
        try:
            found.raw_exif = bytes.fromhex(b"".join(lines).decode("ascii"))
        except ValueError:
            found.raw_exif = b""
    elif name == _XMP and found.xmp is None and kind == b"iTXt":
        packed, text = rest[:1] == b"\x01", rest[2:].split(b"\x00", 2)[-1]
        found.xmp = _unpacked(text) if packed else text


def chunks(data: bytes, *, recover: bool = True) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield type, payload and whether the checksum holds; behind IHDR, to the end or a cut.

    Behind a damaged chunk, or very many, the next one of the picture is searched, which can take
    time quadratic in the size: not without a limit of CPU time. Without ``recover`` it ends there.
    """
    place, ancillary = 33, 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind in _CRITICAL:
            if kind == b"IEND":
                return
            yield kind, data[place + 8 : place + 8 + length], _is_sound(data, place, length)
            place = end
            continue
        ancillary += 1
        if ancillary > _MOST_ANCILLARY or not _is_sound(data, place, length):
            if not recover:
                return
            place = _next_known(data, place + 8, end)
            continue
        yield kind, data[place + 8 : end - 4], True
        place = end


def _is_sound(data: bytes, place: int, length: int) -> bool:
    end = place + 8 + length
    if end + 4 > len(data):
        return False
    checksum = int.from_bytes(data[end : end + 4])
    return zlib.crc32(memoryview(data)[place + 4 : end]) == checksum


def _next_known(data: bytes, start: int, declared_end: int) -> int:
    """Return where the next chunk that matters begins, whatever a damaged length says."""
    match = None
    for match in islice(_KNOWN.finditer(data, start), _MOST_CANDIDATES):
        place = match.start() - 4
        if place >= start and _is_sound(data, place, int.from_bytes(data[place : place + 4])):
            return place
    return len(data) if match is None else declared_end


def _unpacked(packed: bytes) -> bytes:
    """Return what the bytes unpack to, nothing if that is unsound or more than is read."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return text if unpacker.eof else b""


def _key(transparency: bytes | None, bit_depth: int, colour_type: int) -> tuple[int, ...] | None:
    samples = {GREY: 1, RGB: 3}.get(colour_type, 0)
    if not samples or transparency is None or len(transparency) < 2 * samples:
        return None
    # Of the two bytes a sample, as many bits count as the picture has.
    mask = (1 << bit_depth) - 1
    return tuple(value & mask for value in struct.unpack_from(f">{samples}H", transparency))


def _chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(payload, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(payload)), kind, payload, struct.pack(">I", checksum)))
