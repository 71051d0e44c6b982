"""A multipart form from a request's stream: bounded, and refused when it is cut short.

Starlette's reader drops an unfinished part without a word, so a cut body would look like a form
that lacks a field; and it holds a file only if the part names one, which some clients leave out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.envelope import BadRequest, ContentTooLarge, UnsupportedMedia
from server.settings import MIB

MAX_PARTS = 100
MAX_FIELD_BYTES = 64 * 1024
FORM_TYPE = "multipart/form-data"


@dataclass
class Part:
    """One part of the form: a file if it has a file name, or is a file field with a file's type."""

    name: str = ""
    is_file: bool = False
    file_name: str = ""
    data: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """The data as text: UTF-8, or Latin-1 where it is not UTF-8."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            return self.data.decode("latin-1")

    @property
    def is_absent_file(self) -> bool:
        """What a browser sends for a file input where nothing was chosen."""
        return self.is_file and not self.file_name and not self.data


class _PartCollector:
    """Collects parts from the parser's callbacks within the limits."""

    def __init__(
        self, wanted: frozenset[str], file_fields: frozenset[str], max_file_bytes: int
    ) -> None:
        self.wanted = wanted
        self.file_fields = file_fields
        self.max_file_bytes = max_file_bytes
        self.parts: dict[str, Part] = {}
        self.finished = False
        self._count = 0
        self._part = Part()
        self._headers: dict[bytes, bytes] = {}
        self._header_name = b""
        self._header_value = b""

    def on_part_begin(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise BadRequest(f"the form has more than {MAX_PARTS} fields")
        self._part = Part()
        self._headers = {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        if b"name" not in options:
            raise BadRequest("malformed multipart form: a part has no name")
        part = self._part
        part.name = options[b"name"].decode("utf-8", "replace")
        part.file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        content_type = self._headers.get(b"content-type", b"").strip().lower()
        typed_as_file = content_type.startswith((b"image/", b"application/octet-stream"))
        # Some clients write a name beyond ASCII as `filename*=` alone.
        named = b"filename" in options or b"filename*" in disposition.lower()
        part.is_file = named or (typed_as_file and part.name in self.file_fields)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.name not in self.wanted:
            return  # An unknown field is ignored, and not held either.
        size = len(part.data) + end - start
        if part.is_file and size > self.max_file_bytes:
            limit = f"{self.max_file_bytes / MIB:.3g}"
            raise ContentTooLarge(f"{part.name}: the file is over {limit} MiB")
        if not part.is_file and size > MAX_FIELD_BYTES:
            raise ContentTooLarge(f"{part.name}: the text is over {MAX_FIELD_BYTES // 1024} KiB")
        part.data += data[start:end]

    def on_part_end(self) -> None:
        # The last of repeated fields counts, wherever it stood.
        if self._part.name in self.wanted:
            self.parts[self._part.name] = self._part

    def on_end(self) -> None:
        self.finished = True


def boundary_of(content_type: str | None) -> bytes:
    """The boundary in a multipart Content-Type.

    Raises UnsupportedMedia for another media type, BadRequest for a multipart without boundary.
    """
    media_type, options = parse_options_header(content_type or "")
    if media_type.lower() != FORM_TYPE.encode():
        sent = (content_type or "none").split(";")[0].strip()[:100]
        raise UnsupportedMedia(f"Content-Type is {sent}; send the fields as {FORM_TYPE}")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise BadRequest(f"malformed multipart form: Content-Type {FORM_TYPE} has no boundary")
    return boundary


async def read_form(
    content_type: str | None,
    stream: AsyncIterator[bytes],
    *,
    wanted: frozenset[str],
    file_fields: frozenset[str],
    max_file_bytes: int,
) -> dict[str, Part]:
    """The wanted fields of a multipart body, by name; the last of a repeated field.

    Raises UnsupportedMedia, ContentTooLarge, or BadRequest for a body that is malformed or ends
    before its closing boundary.
    """
    boundary = boundary_of(content_type)
    collector = _PartCollector(wanted, file_fields, max_file_bytes)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.on_part_begin,
                "on_header_field": collector.on_header_field,
                "on_header_value": collector.on_header_value,
                "on_header_end": collector.on_header_end,
                "on_headers_finished": collector.on_headers_finished,
                "on_part_data": collector.on_part_data,
                "on_part_end": collector.on_part_end,
                "on_end": collector.on_end,
            },
        )
        async for chunk in stream:
            parser.write(chunk)
    except FormParserError:
        raise BadRequest("malformed multipart form") from None
    if not collector.finished:
        raise BadRequest("malformed multipart form: it ends before its closing boundary")
    return collector.parts
