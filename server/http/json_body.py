"""A JSON body that holds images as base64: bounded, and read without stopping the event loop.

Python's JSON readers hold the interpreter while they run. So the long texts, which are images, are
cut out first, by searches that take milliseconds each, and what is left, which is small, is read as
JSON. Images are decoded in pieces for the same reason. All of it is done in a thread.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import math
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import anyio.to_thread

from server.http.errors import BadRequest, ContentTooLarge
from server.settings import MIB

LONG_TEXT = 16 * 1024
"""Bytes from which on a text is cut out."""
MAX_REST = MIB
"""Bytes of a body without its long texts."""
MAX_DEPTH = 40
MAX_VALUES = 10_000
"""Values of a body, those in its lists and objects too: what is read of them is read on the event
loop, some milliseconds of so many."""
MAX_ESCAPED_QUOTES = 64 * 1024
"""Escaped quotes of a body; an image has none, and each costs a step of the search for texts."""

_PIECE = 256 * 1024  # a multiple of 4
_ESCAPES = ((b"\\/", b"/"), (b"\\n", b""), (b"\\r", b""), (b"\\t", b""), (b"\\u002b", b"+"),
            (b"\\u002B", b"+"), (b"\\u002f", b"/"), (b"\\u002F", b"/"), (b"\\u003d", b"="),
            (b"\\u003D", b"="))  # fmt: skip
_LONGEST_ESCAPE = 6
_DATA_URL = re.compile(rb"data:[^,]{0,200},")
_BLANKS = b" \t\r\n"


@dataclass(frozen=True)
class LongText:
    """A text of a JSON body that was too long to be anything but an image; base64, as it came."""

    data: bytes

    def __str__(self) -> str:
        """Return the start of the text, as errors show it."""
        return self.data[:60].decode("latin-1")

    @property
    def text(self) -> str:
        """The text without its escapes; what is not UTF-8 in it is replaced."""
        text = self.data.decode("utf-8", "replace")
        try:
            return str(json.loads(f'"{text}"', strict=False))
        except ValueError:
            return text


@dataclass(frozen=True)
class JsonBody:
    """An object from a request's body; ``fingerprint`` is SHA-256 of the body in hex."""

    fields: dict[str, Any]
    fingerprint: str


async def read_json(stream: AsyncIterator[bytes]) -> JsonBody:
    """Return the object that a body holds, whatever its Content-Type; an empty body is `{}`.

    Texts of `LONG_TEXT` bytes or more are LongText. Raises BadRequest or ContentTooLarge.
    """
    body = bytearray()
    async for piece in stream:
        body += piece
    return await anyio.to_thread.run_sync(parse_json, bytes(body))


def parse_json(body: bytes) -> JsonBody:
    """Return the object that ``body`` holds. Blocking. Raises BadRequest or ContentTooLarge."""
    fingerprint = hashlib.sha256(body).hexdigest()
    if not body.strip(_BLANKS):
        return JsonBody({}, fingerprint)
    mark = secrets.token_hex(8)
    rest, texts = _cut_long_texts(body, mark)
    try:
        value = json.loads(rest.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "cannot be read"
        raise BadRequest(f"the body is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise BadRequest("the body is no JSON object")
    whole = _Whole(mark, texts)
    fields = {name: whole.value(item, name, 1) for name, item in value.items()}
    return JsonBody(fields, fingerprint)


def _cut_long_texts(body: bytes, mark: str) -> tuple[bytes, list[LongText]]:
    kept: list[bytes] = []
    texts: list[LongText] = []
    size = start = at = escaped = 0
    while (opening := body.find(b'"', at)) >= 0:
        closing, escaped = _closing_quote(body, opening + 1, escaped)
        at = closing + 1
        if closing - opening > LONG_TEXT:
            kept.append(body[start : opening + 1] + f"{mark}:{len(texts)}".encode())
            size += len(kept[-1])
            texts.append(LongText(body[opening + 1 : closing]))
            start = closing
        if size + at - start > MAX_REST:
            break
    kept.append(body[start:])
    if size + len(kept[-1]) > MAX_REST:
        raise ContentTooLarge(f"the body is over {MAX_REST // MIB} MiB beside its images")
    return b"".join(kept), texts


def _closing_quote(body: bytes, at: int, escaped: int) -> tuple[int, int]:
    """Return where the text that begins at ``at`` ends, and the escaped quotes up to there.

    ``escaped`` counts those before it. Raises BadRequest.
    """
    while escaped <= MAX_ESCAPED_QUOTES:
        quote = body.find(b'"', at)
        if quote < 0:
            raise BadRequest("the body is not JSON: a text has no end")
        slashes = 0
        if quote > at and body[quote - 1] == 0x5C:
            before = body[at:quote]
            slashes = len(before) - len(before.rstrip(b"\\"))
        if slashes % 2 == 0:
            return quote, escaped
        at = quote + 1
        escaped += 1
    raise BadRequest(f"the body is not taken: it has over {MAX_ESCAPED_QUOTES} escaped quotes")


class _Whole:
    """The values of a body with the long ``texts`` back where they were marked."""

    def __init__(self, mark: str, texts: list[LongText]) -> None:
        self._mark = mark
        self._texts = texts
        self._count = 0

    def value(self, value: Any, field: str, depth: int) -> Any:
        """Return a value in ``field``. Raises BadRequest for one that is too much to be meant."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise BadRequest(f"{field[:60]}: the body has over {MAX_VALUES} values up to here")
        if depth > MAX_DEPTH:
            raise BadRequest(f"the body is not taken: it is nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            return {key: self.value(item, field, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, field, depth + 1) for item in value]
        if isinstance(value, str) and value.startswith(self._mark):
            return self._texts[int(value.removeprefix(f"{self._mark}:"))]
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRequest(f"{field[:60]}: {value} is no number of JSON")
        return value


def decode_image_text(field: str, value: object, max_bytes: int) -> bytes:
    """Return the file in a base64 text or data URL, with blanks and without padding too.

    Blocking; call it in a thread. Raises BadRequest or ContentTooLarge, naming ``field``.
    """
    if isinstance(value, LongText):
        data = value.data
    elif isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
    else:
        raise BadRequest(f"{field}: is no text; send the image as base64 or a data URL")
    escaped = isinstance(value, LongText)
    data = data.strip(_BLANKS)
    if data[:5].lower() == b"data:":
        header = _DATA_URL.match(b"data:" + _cleaned(data[5:300], escaped))
        if header is None or b"base64" not in header[0].lower():
            raise BadRequest(f"{field}: is a data URL without base64")
        data = data[data.find(b",") + 1 :]
    elif data[:8].lower().startswith((b"http:", b"https:", b"file:")):
        raise BadRequest(f"{field}: is an address, and none is ever fetched; send the image itself")
    data = b"".join(_cleaned(piece, escaped) for piece in _pieces(data)).rstrip(b"=")
    if len(data) * 3 // 4 > max_bytes:
        raise ContentTooLarge(f"{field}: the file is over {max_bytes / MIB:.3g} MiB")
    data += b"=" * (-len(data) % 4)
    decoded = bytearray()
    try:
        for start in range(0, len(data), _PIECE):
            decoded += binascii.a2b_base64(data[start : start + _PIECE], strict_mode=True)
    except binascii.Error:
        raise BadRequest(f"{field}: is not base64") from None
    if not decoded:
        raise BadRequest(f"{field}: is empty")
    return bytes(decoded)


def _pieces(data: bytes) -> Iterator[bytes]:
    """Yield the text in pieces that end beside escapes, not in them."""
    start = 0
    while start < len(data):
        end = start + _PIECE
        escape = data.rfind(b"\\", end - _LONGEST_ESCAPE + 1, end) if end < len(data) else -1
        end = escape if escape > start else end
        yield data[start:end]
        start = end


def _cleaned(piece: bytes, escaped: bool) -> bytes:
    """Return base64 without JSON's escapes and blanks, in the plain alphabet."""
    if escaped and b"\\" in piece:
        for escape, meant in _ESCAPES:
            piece = piece.replace(escape, meant)
    return piece.translate(None, _BLANKS).replace(b"-", b"+").replace(b"_", b"/")
