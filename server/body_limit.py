"""A limit on the size of a request's body, whatever its headers say."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.envelope import ContentTooLarge, failure
from server.settings import MIB

FORM_ALLOWANCE = MIB
"""Bytes a body may have beyond its picture: the other fields and the form's own lines."""


class BodyLimit:
    """Answers 413 to a body over `max_bytes`: by Content-Length, or once that many have come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isascii() and declared.isdigit() and _exceeds(declared, self.max_bytes):
            error = self._too_large()
            await failure(error.status, error.message)(scope, receive, send)
            return

        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.max_bytes:
                    raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> ContentTooLarge:
        return ContentTooLarge(f"the request's body is over {_in_mib(self.max_bytes)} MiB")


def _exceeds(digits: str, limit: int) -> bool:
    # Compared by length first: int() of a huge digit string raises.
    digits = digits.lstrip("0") or "0"
    return len(digits) > 18 or int(digits) > limit


def _in_mib(size: int) -> str:
    return f"{size / MIB:.3g}"
