"""The way up of a picture, from EXIF or XMP that may be damaged or hostile."""

from __future__ import annotations

import re
import struct

from PIL import Image

_TAG = 0x0112
_ENTRY = 12
_INTEGERS = {1: "B", 3: "H", 4: "I"}
"""TIFF's types in which an orientation is found in the wild, as struct formats."""

_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([1-8])")

SIDEWAYS = (5, 6, 7, 8)
"""Orientations under which width and height change places."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(exif: bytes | None, xmp: bytes | None = None) -> int:
    """Return the orientation that the metadata says, 1 to 8; 1 where it says none that is sound."""
    found = _in_exif(exif) if exif else None
    if found is None and xmp and (match := _XMP.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def turned_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return the picture as it was seen."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _in_exif(exif: bytes) -> int | None:
    """Read the first directory alone, whose entries are of one size: no offset is followed."""
    tiff = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return None
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for place in range(start + 2, min(start + 2 + count * _ENTRY, len(tiff) - _ENTRY + 1), _ENTRY):
        tag, kind = struct.unpack_from(order + "HH", tiff, place)
        if tag == _TAG and kind in _INTEGERS:
            (value,) = struct.unpack_from(order + _INTEGERS[kind], tiff, place + 8)
            return int(value)
    return None
