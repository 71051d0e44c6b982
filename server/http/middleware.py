"""Middleware that makes every failure an envelope, wherever it is raised."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.envelope import failure
from server.http.errors import ApiError, InternalError, Unavailable
from server.http.failure_shapes import failure_at, shape_at

logger = logging.getLogger(__name__)


class FailureGuard:
    """Turns what escapes the application into a 500 that tells only the request id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = complete = False

        async def watch(message: Message) -> None:
            nonlocal started, complete
            started = started or message["type"] == "http.response.start"
            complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientDisconnect:
            return  # Nobody is left to answer; the access log says 499.
        except asyncio.CancelledError:
            # Only a server that stops without further waiting cancels a request.
            if complete:
                return  # The answer is on its way, and its client is slow.
            if started:
                raise
            error: ApiError = Unavailable("the server is shutting down", 5.0)
            await failure_at(scope, error.status, error.message, error.headers)(
                scope, receive, send
            )
        except Exception:
            logger.exception("request failed")
            if started:
                raise
            error = InternalError()
            await failure_at(scope, error.status, error.message)(scope, receive, send)


class EnvelopedCors(CORSMiddleware):
    """CORS whose refusals of a preflight are envelopes too."""

    def preflight_response(self, request_headers: Any) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        allowed = self.is_allowed_origin(request_headers["origin"])
        kept = {
            name: value
            for name, value in response.headers.items()
            if (name.startswith("access-control-") and allowed) or name == "vary"
        }
        return failure(response.status_code, bytes(response.body).decode(), kept)


class ErrorsAs200:
    """Answers failures with HTTP 200 and the true status in `X-Status`.

    Health checks are excepted, and the other APIs, whose clients read true statuses.
    """

    def __init__(self, app: ASGIApp, exempt: tuple[str, ...] = ("/health/", "/-/")) -> None:
        self.app = app
        self.exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path.startswith(self.exempt) or shape_at(scope):
            await self.app(scope, receive, send)
            return

        async def rewrite(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = [*message.get("headers", ()), (b"x-status", b"%d" % message["status"])]
                message = {**message, "status": 200, "headers": headers}
            await send(message)

        await self.app(scope, receive, rewrite)
