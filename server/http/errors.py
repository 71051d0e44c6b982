"""Failures as HTTP puts them, and the one table from a domain's exception to its failure.

ApiError                     a failure with its HTTP status
+-- BadRequest         400   the input is wrong
+-- Unauthorized       401   no key, or a bad one
+-- PaymentRequired    402   not enough credits
+-- NotFound           404   nothing is there, or not any more
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

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount

from pipelines.errors import (
    DeadlineExceeded,
    EngineRefused,
    GenerationCancelled,
    GenerationFailed,
    RequestTooLong,
)
from server.errors import (
    DatabaseAway,
    DecodersBusy,
    DecodeTimeout,
    IdempotencyConflict,
    ImageError,
    ImageStoreAway,
    ImageWithheld,
    InsufficientCredits,
    InvalidInput,
    ReservationLost,
    RunIdInUse,
    RunWithdrawn,
    SafetyCheckHangs,
    StillRunning,
    TooManyAtOnce,
)
from server.http.failure_shapes import failure_at
from server.observability.logs import current_request_id
from server.observability.request_record import current_record

logger = logging.getLogger(__name__)


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class ApiError(Exception):
    """A failure to answer with `status`; the message goes to the client as it is."""

    status = 500

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = dict(headers or {})

    @property
    def retry_after(self) -> int | None:
        """The seconds of its Retry-After, None where it has none."""
        told = self.headers.get("Retry-After")
        return None if told is None else int(told)


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


class NotFound(ApiError):
    """Nothing is there, or not any more."""

    status = 404


class Conflict(ApiError):
    """Another request has the Idempotency-Key or the run's id, or the run was withdrawn."""

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


API_ERRORS: Mapping[type[Exception], Callable[[Any, float], ApiError]] = {
    # The input and the finished image
    InvalidInput: lambda error, _: BadRequest("; ".join(error.problems)),
    ImageError: lambda error, _: BadRequest(str(error)),
    DecodeTimeout: lambda _, seconds: DeadlineExpired(
        f"the picture was not decoded within {seconds:g} s"
    ),
    DecodersBusy: lambda error, _: Unavailable(str(error), 2.0),
    ImageWithheld: lambda error, _: BadRequest(str(error)),
    SafetyCheckHangs: lambda error, _: Unavailable(str(error), 5.0),
    # The engine
    RequestTooLong: lambda error, _: BadRequest(
        f"width, height, steps: {error}; a smaller picture or fewer steps take less"
    ),
    EngineRefused: lambda error, _: Unavailable(str(error), error.retry_after),
    DeadlineExceeded: lambda _, seconds: DeadlineExpired(
        f"the picture was not finished within {seconds:g} s"
    ),
    GenerationCancelled: lambda *_: Unavailable("the request was withdrawn", 5.0),
    GenerationFailed: lambda *_: InternalError(),
    RunIdInUse: lambda *_: Conflict(
        "X-Run-Id: a run with it goes on, and is found by it", {"Retry-After": "1"}
    ),
    RunWithdrawn: lambda *_: Conflict("X-Run-Id: the run was withdrawn"),
    # The accounts
    InsufficientCredits: lambda error, _: PaymentRequired(str(error)),
    TooManyAtOnce: lambda error, _: TooManyRequests(str(error), 1.0),
    IdempotencyConflict: lambda *_: Conflict(
        "Idempotency-Key: was used for another request; take a new one"
    ),
    StillRunning: lambda *_: Conflict(
        "Idempotency-Key: the first request with it has not ended yet", {"Retry-After": "1"}
    ),
    ReservationLost: lambda *_: Unavailable("the credits held for this request were released"),
    DatabaseAway: lambda *_: Unavailable("the accounts cannot be reached", 5.0),
    ImageStoreAway: lambda *_: Unavailable("images cannot be kept for an address now", 5.0),
}
"""The failure for each of the domain's exceptions and those derived from it, given the seconds that
the request may take."""


ANSWERED: tuple[type[Exception], ...] = (ApiError, *API_ERRORS)
"""All that `api_error` has a failure for."""


def api_error(error: Exception, seconds: float = 0.0) -> ApiError:
    """Return the failure to answer `error` with, in a request that may take `seconds`.

    Raises KeyError for an exception that has no place in `API_ERRORS`.
    """
    if isinstance(error, ApiError):
        return error
    kind = next((kind for kind in type(error).__mro__ if kind in API_ERRORS), type(error))
    return API_ERRORS[kind](error, seconds)


def logged_api_error(error: Exception, seconds: float) -> ApiError:
    """Return the failure as `api_error`, and log what the client is not told.

    An exception that has no place in `API_ERRORS` is a fault of ours.
    """
    answer = api_error(error, seconds) if isinstance(error, ANSWERED) else InternalError()
    current_record().status = answer.status  # which a stream of events has no other place for
    if isinstance(answer, InternalError):
        logger.error("the generation failed", exc_info=error)
    return answer


def add_failure_handlers(app: FastAPI) -> None:
    """Make every failure inside `app`, the framework's own too, an envelope."""
    for kind in ANSWERED:
        app.add_exception_handler(kind, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)


async def _answer_api_error(request: Request, error: Exception) -> Response:
    answer = logged_api_error(error, request.app.state.settings.request_timeout)
    return failure_at(request.scope, answer.status, answer.message, answer.headers)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # Routing stops at the first route with the path and names that one's methods.
        headers["Allow"] = ", ".join(filter(partial(_is_allowed, request), _METHODS))
    message = _plain_message(request, error, headers)
    return failure_at(request.scope, error.status_code, message, headers)


def _is_allowed(request: Request, method: str) -> bool:
    # A mount's own scope begins below it, where another route may have what is left of the path.
    root = request.scope.get("app_root_path", request.scope.get("root_path", ""))
    routed = "GET" if method == "HEAD" else method  # see HeadAsGet
    scope = {**request.scope, "method": routed, "root_path": root}
    return any(
        route.matches(scope)[0] is Match.FULL
        # A mount matches every method; those here hold files.
        for route in request.app.routes
        if routed == "GET" or not isinstance(route, Mount)
    )


def _plain_message(request: Request, error: HTTPException, headers: Mapping[str, str]) -> str:
    if error.status_code == 404:
        return f"nothing is at {request.url.path}"
    if error.status_code == 405:
        allowed = headers["Allow"]
        return f"{request.method} is not allowed at {request.url.path}; allowed: {allowed}"
    if error.detail:
        return str(error.detail)
    return HTTPStatus(error.status_code).phrase


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = (f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
    return failure_at(request.scope, 400, "; ".join(problems))
