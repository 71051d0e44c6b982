"""A JPEG file without its metadata, which is read apart from it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from server.images.files.png import MAX_PROFILE_BYTES

SIGNATURE = b"\xff\xd8\xff"
APP1 = 0xE1
_SOS, _EOI = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker with a length behind it, or the end: not fill, nor one that stands alone."""

_PLAIN_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
EXIF = b"Exif\x00\x00"
_XMP = b"http://ns.adobe.com/xap/1.0/\x00"
_ICC = b"ICC_PROFILE\x00"


@dataclass
class Jpeg:
    """Tables, frame and scans as a file of their own, and what else bears on the pixels."""

    data: bytes
    profile: bytes | None
    exif: bytes | None
    xmp: bytes | None


def read_jpeg(data: bytes) -> Jpeg:
    """Return what of a JPEG file is needed. Damage to the picture itself is left for its decoder.

    JFIF's and Adobe's segments stay, since they say what the components are.
    """
    kept = [SIGNATURE[:2]]
    profile: list[bytes] = []
    exif: list[bytes] = []
    xmp: bytes | None = None
    for marker, start, end in segments(data):
        if marker == _SOS:
            kept.append(data[start:])
            break
        payload = data[start + 4 : end]
        if marker == 0xE0 and payload.startswith(b"JFIF\x00"):
            kept.append(_PLAIN_JFIF)
        elif marker == 0xEE and payload.startswith(b"Adobe") and len(payload) >= 12:
            kept.append(b"\xff\xee\x00\x0e" + payload[:12])
        elif marker == APP1 and payload.startswith(EXIF):
            exif.append(payload[len(EXIF) :])
        elif marker == APP1 and payload.startswith(_XMP) and xmp is None:
            xmp = payload[len(_XMP) :]
        elif marker == 0xE2 and payload.startswith(_ICC):
            profile.append(payload[len(_ICC) :])
        elif not 0xE0 <= marker <= 0xEF and marker != 0xFE:
            kept.append(data[start:end])
    return Jpeg(b"".join(kept), _joined(profile), b"".join(exif) or None, xmp)


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment, which may be cut, up to the first scan's."""
    place = 2
    while found := _MARKER.search(data, place):
        start = found.start()
        marker = data[start + 1]
        if marker == _EOI:
            return
        (length,) = struct.unpack(">H", data[start + 2 : start + 4].rjust(2, b"\x00"))
        yield marker, start, start + 2 + length
        if marker == _SOS:
            return
        place = start + 2 + max(2, length)


def _joined(parts: list[bytes]) -> bytes | None:
    """Return the profile whose parts each begin with their number and how many there are."""
    parts = sorted(part for part in parts if len(part) > 2)
    if not parts or parts[0][1] != len(parts) or sum(map(len, parts)) > MAX_PROFILE_BYTES:
        return None
    return b"".join(part[2:] for part in parts)
