"""A ceiling on the bytes of uploads and answers that the server holds for its clients."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import Unavailable
from server.settings import MIB

RETRY_SECONDS = 5.0

_STATE = "release_upload"


class ByteBudget:
    """Counts the bytes that are held, up to a ceiling."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.held = 0

    def check(self, size: int) -> None:
        """Raise Unavailable if `size` more bytes would go beyond the ceiling.

        Not where nothing else is held: an answer that was kept under a higher ceiling could never
        be fetched.
        """
        if self.held and self.held + size > self.ceiling:
            raise Unavailable(
                f"the server holds {self.ceiling / MIB:.3g} MiB of uploads and unread answers, "
                "which is all it may",
                RETRY_SECONDS,
            )


def release_upload(scope: Scope) -> None:
    """Count the body of a request no longer. Call once it has been let go of."""
    scope["state"][_STATE]()


class BytesInFlight:
    """Counts each request's body until it is released, or over, and its answer until its client has
    taken it.

    A body that goes beyond the ceiling raises Unavailable where it is read. An answer never does:
    it has been worked for, and paid.
    """

    def __init__(self, app: ASGIApp, budget: ByteBudget) -> None:
        self.app = app
        self.budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        budget = self.budget
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            if size:
                budget.check(size)
            budget.held += size
            received += size
            return message

        def release() -> None:
            nonlocal received
            budget.held -= received
            received = 0

        async def held_until_taken(message: Message) -> None:
            size = len(message.get("body", b""))
            budget.held += size
            try:
                # The protocol comes back once the client's system has all of it, or is gone.
                await send(message)
            finally:
                budget.held -= size

        scope.setdefault("state", {})[_STATE] = release
        try:
            await self.app(scope, counted, held_until_taken)
        finally:
            release()
