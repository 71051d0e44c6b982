"""Limits on a request's body, whatever its headers say: its size, and how slowly it may come."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import ContentTooLarge, UploadTooSlow
from server.http.failure_shapes import failure_at
from server.settings import MIB


class BodyLimit:
    """Answers 413 to a body over `max_bytes`: by Content-Length, or once that many have come.

    Answers 408 to one that stands still for `patience` seconds, or is as many behind `min_rate`
    bytes a second; what was quicker before is no excuse. With a rate of 0 it may be as slow as it
    likes.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        min_rate: float = 0.0,
        patience: float = 15.0,
        larger: Mapping[str, int] | None = None,
    ) -> None:
        """``larger`` has limits of their own for the paths that begin with its keys."""
        self.app = app
        self.max_bytes = max_bytes
        self._larger = larger or {}
        self.min_rate = min_rate
        self.patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        own = (limit for prefix, limit in self._larger.items() if path.startswith(prefix))
        most = next(own, self.max_bytes)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isascii() and declared.isdigit() and _exceeds(declared, most):
            error = _too_large(most)
            await failure_at(scope, error.status, error.message)(scope, receive, send)
            return

        received = 0
        complete = False
        allowance = self.patience

        async def next_message() -> Message:
            nonlocal allowance
            if complete:
                return await receive()
            # Only the time in which the client is waited for counts against it.
            began = time.monotonic()
            try:
                async with asyncio.timeout(allowance):
                    message = await receive()
            except TimeoutError:
                raise UploadTooSlow(self._too_slow) from None
            allowance -= time.monotonic() - began
            size = len(message.get("body", b""))
            gained = size / self.min_rate if self.min_rate else math.inf
            allowance = min(self.patience, allowance + gained)
            return message

        async def counted() -> Message:
            nonlocal received, complete
            message = await next_message()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > most:
                    raise _too_large(most)
            return message

        await self.app(scope, counted, send)

    @property
    def _too_slow(self) -> str:
        if not self.min_rate:
            return f"no byte of the upload came for {self.patience:g} s"
        return f"the upload is {self.patience:g} s behind {self.min_rate / 1024:g} KiB/s"


def _too_large(limit: int) -> ContentTooLarge:
    return ContentTooLarge(f"the request's body is over {_in_mib(limit)} MiB")


def _exceeds(digits: str, limit: int) -> bool:
    # Compared by length first: int() of a huge digit string raises.
    digits = digits.lstrip("0") or "0"
    return len(digits) > 18 or int(digits) > limit


def _in_mib(size: int) -> str:
    return f"{size / MIB:.3g}"
