"""A multipart form from a request's stream: bounded, decoded, and refused when it is cut short.

Starlette's reader drops an unfinished part without a word, so a cut body would look like a form
that lacks a field; and it holds a file only if the part names one, which some clients leave out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import (
    MAX_BOUNDARY_LENGTH,
    MultipartParser,
    parse_options_header,
)

from server.http.charsets import UndecodableText, decode_text
from server.http.errors import BadRequest, ContentTooLarge, UnsupportedMedia
from server.http.part_headers import MAX_HEADER_BYTES, PartHeaders
from server.http.transfer_encoding import AsIs, Decoder, UndecodablePart, decoder
from server.settings import MIB

MAX_PARTS = 250
"""More than the 50 weighted prompts, of two fields each, that one of the APIs may be sent."""
MAX_FIELD_BYTES = 64 * 1024
FORM_TYPE = "multipart/form-data"
CHARSET_FIELD = "_charset_"
"""The field whose value is the charset of the parts that declare none (RFC 7578, 4.6)."""

_MAX_HEADER_LINE = 8 * 1024
_MAX_CONTENT_TYPE = 1024
_FEW_BYTES = MAX_FIELD_BYTES
"""Of text that is decoded at once; some charsets take milliseconds for as much."""


@dataclass
class Part:
    """One part of the form: a file if it has a file name, or is a file field with a file's type.

    Once the form is read, the data of a text part is UTF-8 without a byte order mark, whatever its
    charset was; of text in a file's place the start alone is kept.
    """

    name: str = ""
    is_file: bool = False
    file_name: str = ""
    """`*` for one that came in the extended form alone, which is not read."""
    charset: str = ""
    data: bytearray = field(default_factory=bytearray)
    is_blank: bool = True
    """Whether nothing but blanks came as its data, what is not held included."""
    problem: str = ""
    """Why the part cannot be read, or `""`."""

    @property
    def text(self) -> str:
        """The data of a text part without a problem."""
        return self.data.decode()

    @property
    def is_left_out(self) -> bool:
        """Return whether this is what is sent for a file field without a file.

        It has no file name, as a browser's, and nothing but blanks. A file that is empty or cannot
        be decoded was meant.
        """
        return self.is_blank and not (self.problem or self.file_name)


class _PartCollector:
    """Collects parts from the parser's callbacks within the limits."""

    def __init__(
        self,
        wanted: frozenset[str],
        file_fields: frozenset[str],
        max_file_bytes: int,
        on_unknown: Callable[[bytes], None],
        keep_first: frozenset[str],
        bare_files: bool,
    ) -> None:
        self.keep_first = keep_first
        self.bare_files = bare_files
        self.wanted = wanted
        self.file_fields = file_fields
        self.max_file_bytes = max_file_bytes
        self.on_unknown = on_unknown
        self.parts: dict[str, Part] = {}
        self.finished = False
        self._count = 0
        self._part = Part()
        self._size = 0
        self._decoder: Decoder = AsIs()
        self._headers: dict[bytes, bytes] = {}
        self._header_name = b""
        self._header_value = b""

    def on_part_begin(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise BadRequest(f"the form has more than {MAX_PARTS} fields")
        self._part = Part()
        self._size = 0
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
        if part.name not in self.wanted:
            if part.name != CHARSET_FIELD:
                self.on_unknown(_as_meant(options[b"name"]))
            return
        earlier = self.parts.get(part.name) if part.name in self.keep_first else None
        if earlier is not None and not earlier.is_left_out:
            self.on_unknown(_as_meant(options[b"name"]))
            part.name = ""
            return
        content_type, type_options = parse_options_header(self._headers.get(b"content-type"))
        part.charset = type_options.get(b"charset", b"").decode("latin-1")
        typed_as_file = content_type.startswith((b"image/", b"application/octet-stream"))
        # Some clients write a name beyond ASCII as `filename*=` alone.
        extended = b"filename*" in disposition.lower()
        named = b"filename" in options or extended
        file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        part.file_name = file_name or ("*" if extended else "")
        in_files_place = part.name in self.file_fields
        part.is_file = named or (in_files_place and (typed_as_file or self.bare_files))
        try:
            encoding = self._headers.get(b"content-transfer-encoding", b"")
            self._decoder = decoder(encoding.decode("latin-1"))
        except UndecodablePart as error:
            part.problem = str(error)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.name == CHARSET_FIELD:
            part.data += data[start : min(end, start + MAX_FIELD_BYTES - len(part.data))]
            return
        if part.name not in self.wanted or part.problem:
            return  # An unknown field is ignored, and not held either.
        try:
            self._hold(self._decoder.feed(data[start:end]))
        except UndecodablePart as error:
            self._refuse(str(error))

    def _refuse(self, problem: str) -> None:
        # What was decoded before depends on how the body was cut: none of it is kept, and nothing
        # of what follows.
        self._part.problem = problem
        self._part.data.clear()

    def _hold(self, data: bytes) -> None:
        part = self._part
        self._size += len(data)
        # As it comes: each repetition of a field asks, and the data may be a large file.
        part.is_blank = part.is_blank and not data.strip()
        in_files_place = part.name in self.file_fields
        if (part.is_file or in_files_place) and self._size > self.max_file_bytes:
            limit = f"{self.max_file_bytes / MIB:.3g}"
            raise ContentTooLarge(f"{part.name}: the file is over {limit} MiB")
        if part.is_file:
            part.data += data
        elif in_files_place:
            # It will be refused, whatever its size; the limit above is a file's all the same.
            part.data += data[: MAX_FIELD_BYTES - len(part.data)]
        elif self._size > MAX_FIELD_BYTES:
            self._refuse(f"the text is over {MAX_FIELD_BYTES // 1024} KiB")
        else:
            part.data += data

    def on_part_end(self) -> None:
        part = self._part
        if part.name == CHARSET_FIELD:
            self.parts[CHARSET_FIELD] = part
        if part.name not in self.wanted:
            return
        try:
            if not part.problem:
                self._hold(self._decoder.end())
        except UndecodablePart as error:
            self._refuse(str(error))
        # The last of repeated fields counts, wherever it stood.
        self.parts[part.name] = part

    def on_end(self) -> None:
        self.finished = True

    def decoded(self, form_charset: str) -> dict[str, Part]:
        """The parts, their text decoded: `_charset_` may have come after what it describes."""
        parts = self.parts
        if (named := parts.pop(CHARSET_FIELD, None)) is not None:
            form_charset = named.data.decode("latin-1").strip() or form_charset
        for part in parts.values():
            if part.is_file or part.name in self.file_fields or part.problem:
                continue
            try:
                text = decode_text(part.data, part.charset or form_charset)
            except UndecodableText as error:
                part.problem = str(error)
            else:
                part.data = bytearray(text.encode())
        return parts


def _as_meant(name: bytes) -> bytes:
    """A field's name without the escapes that browsers write (WHATWG HTML, 4.10.21.8)."""
    return name.replace(b"%0D", b"\r").replace(b"%0A", b"\n").replace(b"%22", b'"')


def refuse_encoded_body(encodings: Iterable[str]) -> None:
    """Raise UnsupportedMedia if the Content-Encoding headers name any but `identity`."""
    for encoding in (item.strip() for header in encodings for item in header.split(",")):
        if encoding and encoding.lower() != "identity":
            raise UnsupportedMedia(
                f"Content-Encoding: {encoding[:100]} is not supported; send the body as it is",
                {"Accept-Encoding": "identity"},
            )


def _boundary_and_charset(content_type: str | None) -> tuple[bytes, str]:
    """The boundary and the charset, or `""`, in a multipart Content-Type.

    Raises UnsupportedMedia for another media type, BadRequest for a multipart without boundary.
    """
    if content_type is not None and len(content_type) > _MAX_CONTENT_TYPE:
        raise BadRequest(
            f"malformed multipart form: Content-Type is over {_MAX_CONTENT_TYPE} characters"
        )
    media_type, options = parse_options_header(content_type or "")
    if media_type.lower() != FORM_TYPE.encode():
        sent = (content_type or "none").split(";")[0].strip()[:100]
        raise UnsupportedMedia(f"Content-Type is {sent}; send the fields as {FORM_TYPE}")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise BadRequest(f"malformed multipart form: Content-Type {FORM_TYPE} has no boundary")
    if len(boundary) > MAX_BOUNDARY_LENGTH:
        raise BadRequest(
            f"malformed multipart form: its boundary is over {MAX_BOUNDARY_LENGTH} bytes"
        )
    return boundary, options.get(b"charset", b"").decode("latin-1")


async def read_form(
    content_type: str | None,
    stream: AsyncIterator[bytes],
    *,
    wanted: frozenset[str],
    file_fields: frozenset[str],
    max_file_bytes: int,
    on_unknown: Callable[[bytes], None] = lambda name: None,
    keep_first: frozenset[str] = frozenset(),
    bare_files: bool = False,
) -> dict[str, Part]:
    """Return the wanted fields of a multipart body, by name; the last of a repeated field.

    Of the fields in `keep_first` the first that holds anything counts, and those after it are
    unknown. With `bare_files` a file field is a file though its part has neither a file name nor a
    type. `on_unknown` is told the name of each other field as it comes. Raises UnsupportedMedia,
    ContentTooLarge, or BadRequest for a body that is malformed or ends before its closing boundary.
    """
    boundary, form_charset = _boundary_and_charset(content_type)
    collector = _PartCollector(
        wanted, file_fields, max_file_bytes, on_unknown, keep_first, bare_files
    )
    part_headers = PartHeaders(boundary)
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
            max_header_count=MAX_HEADER_BYTES,
            max_header_size=_MAX_HEADER_LINE,
        )
        async for chunk in stream:
            parser.write(part_headers.feed(chunk))
    except FormParserError:
        raise BadRequest("malformed multipart form") from None
    if part_headers.in_preamble:
        raise BadRequest(
            "malformed multipart form: no line of it is the boundary that Content-Type names"
        )
    if not collector.finished:
        raise BadRequest("malformed multipart form: it ends before its closing boundary")
    if sum(len(part.data) for part in collector.parts.values() if not part.is_file) <= _FEW_BYTES:
        return collector.decoded(form_charset)
    return await anyio.to_thread.run_sync(collector.decoded, form_charset)
