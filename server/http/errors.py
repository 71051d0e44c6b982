"""The one shape of every answer, `{"code", "message", "data"}`, and the failures that have it.

ApiError                     a failure with its HTTP status
+-- BadRequest         400   the input is wrong
+-- Unauthorized       401   no key, or a bad one
+-- PaymentRequired    402   not enough credits
+-- UploadTooSlow      408   the body did not come in time
+-- Conflict           409   an Idempotency-Key in use
+-- ContentTooLarge    413   the upload is over a limit
+-- UnsupportedMedia   415   not a multipart form
+-- TooManyRequests    429   over the key's limits; with Retry-After
+-- InternalError      500   says nothing of the inside
+-- Unavailable        503   busy, loading or shutting down; with Retry-After
+-- DeadlineExpired    504   took longer than allowed
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observability.logs import current_request_id

SUCCESS_CODE = 0
FAILURE_CODE = -1

logger = logging.getLogger(__name__)


class ApiError(Exception):
    """A failure to answer with `status`; the message goes to the client as it is."""

    status = 500

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = dict(headers or {})


class BadRequest(ApiError):
    """The input is wrong; the message names every bad field, its value and its rule."""

    status = 400


class Unauthorized(ApiError):
    """No key, or one that is not known."""

    status = 401

    def __init__(self, message: str) -> None:
        super().__init__(message, {"WWW-Authenticate": "Bearer"})


class PaymentRequired(ApiError):
    """The key has not enough credits."""

    status = 402


class UploadTooSlow(ApiError):
    """The body came too slowly and was cut off."""

    status = 408

    def __init__(self, message: str) -> None:
        super().__init__(message, {"Connection": "close"})


class Conflict(ApiError):
    """The Idempotency-Key stands for another request, or the first one still runs."""

    status = 409


class ContentTooLarge(ApiError):
    """The body, the file or a field is over its limit."""

    status = 413


class UnsupportedMedia(ApiError):
    """The body is not a multipart form."""

    status = 415


class TooManyRequests(ApiError):
    """Over a limit; `retry_after` is in seconds."""

    status = 429

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, {"Retry-After": str(max(1, math.ceil(retry_after)))})


class InternalError(ApiError):
    """Something went wrong that the client can do nothing about; the log says what."""

    status = 500

    def __init__(self) -> None:
        super().__init__(f"internal error, request id {current_request_id()}")


class Unavailable(ApiError):
    """No room, not ready or shutting down; `retry_after` is in seconds."""

    status = 503

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message, {"Retry-After": str(max(1, math.ceil(retry_after)))})


class DeadlineExpired(ApiError):
    """The request took longer than it is allowed."""

    status = 504


def success(data: Mapping[str, Any]) -> Response:
    """A success whose `data` is small."""
    body = {"code": SUCCESS_CODE, "message": "success", "data": dict(data)}
    return _json(json.dumps(body, separators=(",", ":")).encode(), 200, {})


def image_body(image_base64: bytes, seed: int, filtered: bool = False) -> bytes:
    """A finished picture as a JSON body, without a JSON encoder's walk over the base64 text.

    `filtered` is said only where it is true: otherwise data is exactly the contract's.
    """
    head = b'{"code":0,"message":"success","data":{"image":"'
    tail = b',"filtered":true}}' if filtered else b"}}"
    return b"".join((head, image_base64, b'","seed":%d' % seed, tail))


def image_response(body: bytes) -> Response:
    """The answer whose body `image_body` made."""
    return _json(body, 200, {})


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """A failure with its true status."""
    body = {"code": FAILURE_CODE, "message": message, "data": None}
    return _json(json.dumps(body, separators=(",", ":")).encode(), status, headers or {})


def _json(body: bytes, status: int, headers: Mapping[str, str]) -> Response:
    # A picture costs credits and a health check is of the moment: neither is to be cached.
    headers = {"Cache-Control": "no-store", **headers}
    return Response(body, status, headers=headers, media_type="application/json")


def add_failure_handlers(app: FastAPI) -> None:
    """Make every failure inside `app`, the framework's own too, an envelope."""
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return failure(error.status, error.message, error.headers)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return failure(error.status_code, _plain_message(request, error), error.headers)


def _plain_message(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"nothing is at {request.url.path}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{request.method} is not allowed at {request.url.path}; allowed: {allowed}"
    if error.detail:
        return str(error.detail)
    return HTTPStatus(error.status_code).phrase


async def _answer_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = (f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
    return failure(400, "; ".join(problems))


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
            await failure(error.status, error.message, error.headers)(scope, receive, send)
        except Exception:
            logger.exception("request failed")
            if started:
                raise
            error = InternalError()
            await failure(error.status, error.message)(scope, receive, send)


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
    """Answers failures with HTTP 200 and the true status in `X-Status`; health checks excepted."""

    def __init__(self, app: ASGIApp, exempt_prefix: str = "/health/") -> None:
        self.app = app
        self.exempt_prefix = exempt_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path.startswith(self.exempt_prefix):
            await self.app(scope, receive, send)
            return

        async def rewrite(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = [*message.get("headers", ()), (b"x-status", b"%d" % message["status"])]
                message = {**message, "status": 200, "headers": headers}
            await send(message)

        await self.app(scope, receive, rewrite)
