"""The settings that a file of a generated image holds as text, without decoding its pixels, and
their names and values.

PNG has them as the text chunk `parameters`, JPEG and WebP as EXIF's UserComment: A1111's way, and
ours. Whatever is damaged or too long is taken for no text.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from itertools import islice

from PIL import Image
from PIL.ExifTags import IFD, Base

from server.images.files import jpeg, png, webp

MAX_TEXT = 1024 * 1024
_PAIR = re.compile(r'(\w[\w \-/]{1,80}):[ ]{0,20}("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(-?\d+)x(-?\d+)", re.ASCII)
_LONGEST_LINE = 100_000
"""Characters of a line of settings that are read: the text is a stranger's."""
_NEGATIVE = "Negative prompt:"
_MOST_PARTS = 10_000
"""Chunks or segments that are looked at, of whatever kind: a file that large has fewer."""


def infotext(file: bytes) -> str:
    """Return the text, or `""`."""
    try:
        if file.startswith(png.SIGNATURE):
            return _png_text(file)
        if file.startswith(jpeg.SIGNATURE):
            return _exif_text(_jpeg_exif(file))
        if webp.is_webp(file):
            return _exif_text(_webp_exif(file))
    except (ValueError, KeyError, struct.error, zlib.error, SyntaxError, TypeError, IndexError):
        return ""
    return ""


def settings_in(text: str) -> dict[str, str]:
    """Return the settings in such a text by A1111's names: `Prompt`, `Steps`, `Size-1`, ...

    As there, the last line holds them if it has three at least. Blocking.
    """
    lines = text.strip().split("\n")
    pairs = {name.strip(): value for name, value in _PAIR.findall(lines[-1][:_LONGEST_LINE])}
    if len(pairs) < 3:
        pairs = {}
    else:
        lines.pop()
    prompt, _, negative = "\n".join(["", *lines]).partition(f"\n{_NEGATIVE}")
    found = {"Prompt": prompt.strip(), "Negative prompt": negative.strip()}
    for name, value in pairs.items():
        if size := _SIZE.fullmatch(value.strip()):
            found |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            found[name] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _png_text(file: bytes) -> str:
    for kind, data, sound in islice(png.chunks(file, recover=False), _MOST_PARTS):
        keyword, _, rest = data.partition(b"\0")
        if keyword != b"parameters" or not sound:
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


def _jpeg_exif(file: bytes) -> bytes:
    segments = islice(jpeg.segments(file), _MOST_PARTS)
    payloads = (file[start + 4 : end] for marker, start, end in segments if marker == jpeg.APP1)
    return b"".join(data[len(jpeg.EXIF) :] for data in payloads if data.startswith(jpeg.EXIF))


def _webp_exif(file: bytes) -> bytes | None:
    chunks = islice(webp.chunks(file, webp.FIRST_CHUNK), _MOST_PARTS)
    return next((file[start:end] for kind, start, end in chunks if kind == b"EXIF"), None)


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MAX_TEXT)


def _exif_text(data: bytes | None) -> str:
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
