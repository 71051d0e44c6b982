"""The header that names a form's fields that have no effect."""

from __future__ import annotations

from urllib.parse import quote_from_bytes

from starlette.types import Scope

from server.http.response_headers import response_headers

IGNORED_FIELDS_HEADER = "X-Ignored-Fields"
MAX_HEADER_LENGTH = 1024
_MAX_NAME = 100


class IgnoredFields:
    """Names unknown fields in an answer's headers as they are met, percent-encoded, each once.

    From the first that would make the header longer than `MAX_HEADER_LENGTH` characters they are
    left out; of a name its first hundred bytes are told.
    """

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers
        self._names: dict[str, None] = {}
        self._length = 0
        self._full = False

    @classmethod
    def of(cls, scope: Scope) -> IgnoredFields:
        """Return the one of a request."""
        state = scope.setdefault("state", {})
        found: IgnoredFields = state.setdefault("ignored_fields", cls(response_headers(scope)))
        return found

    def add(self, name: bytes) -> None:
        if self._full:  # a body may have a million
            return
        shown = quote_from_bytes(name[:_MAX_NAME], safe="")
        length = self._length + len(shown) + (2 if self._names else 0)
        if not shown or shown in self._names:
            return
        if length > MAX_HEADER_LENGTH:
            self._full = True
            return
        self._names[shown] = None
        self._length = length
        self._headers[IGNORED_FIELDS_HEADER] = ", ".join(self._names)
