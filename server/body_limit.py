"""Limits on a request's body, whatever its headers say: its size, and how slowly it may come."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.envelope import ContentTooLarge, UploadTooSlow, failure
from server.settings import MIB

FORM_ALLOWANCE = MIB
"""Bytes a body may have beyond its picture: the other fields and the form's own lines."""


class BodyLimit:
    """Answers 413 to a body over `max_bytes`: by Content-Length, or once that many have come.

    Answers 408 to one that is more than `patience` seconds behind `min_rate` bytes a second, which
    ends stalled and dripping uploads alike; 0 lets it take its time.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, min_rate: float = 0.0, patience: float = 15.0
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.min_rate = min_rate
        self.patience = patience

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
        complete = False
        began: float | None = None

        async def next_message() -> Message:
            nonlocal began
            if complete or not self.min_rate:
                return await receive()
            now = time.monotonic()
            began = now if began is None else began
            due = began + self.patience + received / self.min_rate
            try:
                async with asyncio.timeout(due - now):
                    return await receive()
            except TimeoutError:
                raise UploadTooSlow(
                    f"the upload is {self.patience:g} s behind {self.min_rate / 1024:g} KiB/s"
                ) from None

        async def counted() -> Message:
            nonlocal received, complete
            message = await next_message()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
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
