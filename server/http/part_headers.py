"""The preamble and the headers between the parts of a form, made plain for the parser.

python-multipart takes no preamble, no folded headers, no blanks after the first boundary, and no
lines that end in LF alone. Clients that build forms with a mail library send all of these.
"""

from __future__ import annotations

import re

from server.http.errors import BadRequest

MAX_HEADER_BYTES = 64 * 1024
"""All the headers of a form's parts together: each costs work, and a form needs few."""
MAX_LOOKALIKES = 1000
"""Lines that begin with the boundary and go on: the parser takes long over each, and an honest
boundary is chosen so that there are none."""

_FOLD = re.compile(rb"\r?\n[ \t]+")
_AFTER_BOUNDARY = re.compile(rb"(?P<close>--)|-?\Z|[ \t]*(?:(?P<line>\r?\n)|\r?\Z)")
"""The line ends that make a boundary a delimiter; `\\Z` is for one whose rest has not come yet."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class PartHeaders:
    """Drops the preamble, unfolds the parts' headers and bounds them; the rest passes as it came.

    Lines end as the first boundary's does, in CRLF or in LF. Takes time linear in the body.
    """

    def __init__(self, boundary: bytes) -> None:
        self._dash = b"--" + boundary
        self._line_end = b""  # Not known until the first boundary.
        self._closed = False
        self._held = bytearray(b"\n")  # The body's start is the start of a line.
        self._searched = 0
        self._header_bytes = 0
        self._lookalikes = 0

    @property
    def in_preamble(self) -> bool:
        """Return whether no line so far was the boundary."""
        return not self._line_end and not self._closed

    def feed(self, chunk: bytes) -> bytes:
        """Return what the parser may read now.

        Raises BadRequest for too many header bytes, lines that look like the boundary, or
        delimiters that end now in LF, now in CRLF.
        """
        if self._closed:
            return b""  # The epilogue says nothing.
        held = self._held
        held += chunk
        ready = bytearray()
        at = 0
        while not self._closed:
            start, after = self._next_delimiter(at)
            if not self.in_preamble:
                ready += held[at:start]
            at = start
            if after is None:
                break
            if after["close"]:
                self._closed = True
                ready += b"\r\n" + self._dash + b"--"
            elif (data := self._add_headers(start, after, ready)) is None:
                break
            else:
                at = data
        del held[:at]
        return bytes(ready)

    def _next_delimiter(self, at: int) -> tuple[int, re.Match[bytes] | None]:
        """Return where the next delimiter starts, and the match of what follows its boundary.

        Without one: where bytes start that may become one, and None.
        """
        held = self._held
        opening = self._line_end + self._dash
        search = at
        while (found := held.find(opening, search)) >= 0:
            search = found + len(opening)
            after = _AFTER_BOUNDARY.match(held, search)
            if after is not None and self._is_delimiter(found, after["line"]):
                # Before the first boundary, what shows that it starts a line is held too.
                return (max(0, found - 4) if self.in_preamble else found), after
            self._searched = 0
            self._lookalikes += 1
            if self._lookalikes > MAX_LOOKALIKES:
                raise BadRequest(
                    f"malformed multipart form: more than {MAX_LOOKALIKES} lines of its data "
                    "begin with its boundary; choose another one"
                )
        # As many bytes as could be the start of a line end, a byte order mark and a boundary.
        return max(search, len(held) - len(self._dash) - 4), None

    def _is_delimiter(self, found: int, line_end: bytes | None) -> bool:
        if self.in_preamble:
            before = self._held[max(0, found - 4) : found]
            return before.removesuffix(_BYTE_ORDER_MARK).endswith(b"\n")
        if line_end == b"\r\n" and self._line_end == b"\n":
            # For the parser it is a delimiter, whose headers would be bounded by nothing here.
            raise BadRequest("malformed multipart form: its lines end now in LF, now in CRLF")
        return line_end is None or line_end == self._line_end

    def _add_headers(self, start: int, after: re.Match[bytes], ready: bytearray) -> int | None:
        """Add the delimiter and its part's headers to `ready`, or None until all have come.

        Returns where the part's data starts.
        """
        held = self._held
        line_end = bytes(after["line"] or b"")
        headers = after.end() - len(line_end)
        end = held.find(line_end * 2, max(headers, self._searched)) if line_end else -1
        size = (len(held) if end < 0 else end) - start
        if self._header_bytes + size > MAX_HEADER_BYTES:
            kib = MAX_HEADER_BYTES // 1024
            raise BadRequest(f"malformed multipart form: its parts' headers are over {kib} KiB")
        if end < 0:
            # What is before `start` will not be held; a blank line may be cut off.
            self._searched = max(0, size - len(b"\r\n\r"))
            return None
        self._searched = 0
        self._header_bytes += size
        self._line_end = line_end
        lines = _FOLD.sub(b" ", held[headers + len(line_end) : end])
        if line_end == b"\n":
            lines = lines.replace(b"\n", b"\r\n")
        ready += b"\r\n" + self._dash + b"\r\n"
        if lines:
            ready += lines + b"\r\n"
        ready += b"\r\n"
        return end + 2 * len(line_end)
