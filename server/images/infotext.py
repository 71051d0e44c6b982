"""The settings that a file of a generated image holds as text, without decoding its pixels.

PNG has them as the text chunk `parameters`, JPEG and WebP as EXIF's UserComment: A1111's way, and
ours. Whatever is damaged or too long is taken for no text.
"""

from __future__ import annotations

import struct
import zlib

from PIL import Image
from PIL.ExifTags import IFD, Base

MAX_TEXT = 1024 * 1024
_PNG = b"\x89PNG\r\n\x1a\n"


def infotext(file: bytes) -> str:
    """Return the text, or `""`."""
    try:
        if file.startswith(_PNG):
            return _png_text(file)
        if file.startswith(b"\xff\xd8"):
            return _exif_text(_jpeg_exif(file))
        if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
            return _exif_text(_riff_chunk(file, b"EXIF"))
    except (ValueError, KeyError, struct.error, zlib.error, SyntaxError, TypeError, IndexError):
        return ""
    return ""


def _png_text(file: bytes) -> str:
    at = len(_PNG)
    while at + 12 <= len(file):
        (size,) = struct.unpack(">I", file[at : at + 4])
        kind, data = file[at + 4 : at + 8], file[at + 8 : at + 8 + size]
        at += 12 + size
        keyword, _, rest = data.partition(b"\0")
        if keyword != b"parameters":
            continue
        if kind == b"tEXt":
            return rest[:MAX_TEXT].decode("latin-1")
        if kind == b"zTXt":
            return _inflated(rest[1:]).decode("latin-1")
        if kind == b"iTXt":
            compressed = rest[0] == 1
            text = rest[2:].split(b"\0", 2)[2]
            return (_inflated(text) if compressed else text[:MAX_TEXT]).decode("utf-8", "replace")
    return ""


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MAX_TEXT)


def _jpeg_exif(file: bytes) -> bytes:
    at = 2
    while at + 4 <= len(file) and file[at] == 0xFF and file[at + 1] not in (0xDA, 0xD9):
        (size,) = struct.unpack(">H", file[at + 2 : at + 4])
        data = file[at + 4 : at + 2 + size]
        if file[at + 1] == 0xE1 and data.startswith(b"Exif\0\0"):
            return data
        at += 2 + size
    return b""


def _riff_chunk(file: bytes, name: bytes) -> bytes:
    at = 12
    while at + 8 <= len(file):
        (size,) = struct.unpack("<I", file[at + 4 : at + 8])
        if file[at : at + 4] == name:
            return file[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return b""


def _exif_text(data: bytes) -> str:
    if not data:
        return ""
    exif = Image.Exif()
    exif.load(data if data.startswith(b"Exif\0\0") else b"Exif\0\0" + data)
    comment = exif.get_ifd(IFD.Exif).get(Base.UserComment, b"")
    if not isinstance(comment, bytes):
        return str(comment)[:MAX_TEXT]
    kind, text = comment[:8], comment[8 : 8 + MAX_TEXT]
    if kind == b"UNICODE\0":
        # The byte order is not said: the one with fewer zero bytes first in Latin text.
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", "replace")
    return text.decode("utf-8", "replace").strip("\0")
