"""A JPEG file without its metadata, which is read apart from it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from server.images.files.png import MAX_PROFILE_BYTES

SIGNATURE = b"\xff\xd8\xff"
_SOS, _EOI = 0xDA, 0xD9
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))
"""Markers without a length behind them."""

_PLAIN_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_EXIF = b"Exif\x00\x00"
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
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 2 <= len(data):
        marker = data[place + 1]
        if marker in (0x00, 0xFF):
            place += 1 if marker else 2
            continue
        if marker in _ALONE:
            if marker == _EOI:
                break
            place += 2
            continue
        (length,) = struct.unpack(">H", data[place + 2 : place + 4].rjust(2, b"\x00"))
        if marker == _SOS:
            kept.append(data[place:])
            break
        payload = data[place + 4 : place + 2 + length]
        if marker == 0xE0 and payload.startswith(b"JFIF\x00"):
            kept.append(_PLAIN_JFIF)
        elif marker == 0xEE and payload.startswith(b"Adobe") and len(payload) >= 12:
            kept.append(b"\xff\xee\x00\x0e" + payload[:12])
        elif marker == 0xE1 and payload.startswith(_EXIF):
            exif.append(payload[len(_EXIF) :])
        elif marker == 0xE1 and payload.startswith(_XMP) and xmp is None:
            xmp = payload[len(_XMP) :]
        elif marker == 0xE2 and payload.startswith(_ICC):
            profile.append(payload[len(_ICC) :])
        elif not 0xE0 <= marker <= 0xEF and marker != 0xFE:
            kept.append(data[place : place + 2 + length])
        place += 2 + max(2, length)
    return Jpeg(b"".join(kept), _joined(profile), b"".join(exif) or None, xmp)


def _joined(parts: list[bytes]) -> bytes | None:
    """Return the profile whose parts each begin with their number and how many there are."""
    parts = sorted(part for part in parts if len(part) > 2)
    if not parts or parts[0][1] != len(parts) or sum(map(len, parts)) > MAX_PROFILE_BYTES:
        return None
    return b"".join(part[2:] for part in parts)
