"""Failures in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from server.http.envelope import json_response
from server.http.failure_shapes import fields_of

_CODES = {401: "invalid_api_key", 402: "insufficient_quota", 429: "rate_limit_exceeded"}


def error_of(status: int, message: str) -> dict[str, Any]:
    """Return OpenAI's error object."""
    fields = fields_of(message)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "message": message,
        "type": {402: "insufficient_quota", 429: "rate_limit_error"}.get(status, kind),
        "param": fields[0] if fields else None,
        "code": _CODES.get(status),
    }


def failure_shape(status: int, message: str, headers: Mapping[str, str]) -> Response:
    """Return a failure as OpenAI's clients read it."""
    return json_response({"error": error_of(status, message)}, status, headers)
