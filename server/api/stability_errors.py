"""Failures in the shape that clients of Stability's v1 API read: `{id, name, message}`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.responses import Response

from server.http.envelope import json_response
from server.http.failure_shapes import fields_of
from server.observability.logs import current_request_id

_BY_STATUS = {
    401: "unauthorized",
    402: "insufficient_balance",
    403: "permission_denied",
    404: "not_found",
    409: "conflict",
    413: "invalid_file_size",
    415: "invalid_mime_type",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
    504: "request_timeout",
}
_BY_FIELD = {
    "samples": "invalid_samples",
    "height": "invalid_height_or_width",
    "width": "invalid_height_or_width",
    "init_image": "invalid_init_image",
    "mask_image": "invalid_mask_image",
    "mask_source": "invalid_mask_image",
}
_RULE = re.compile(r"([\w.\[\]]+): (.{1,64}) is not ((?:in|one of|a|true) .+)", re.DOTALL)
_PREFIXES = {
    "no API key": "missing authorization header",
    "the API key is not known": "Incorrect API key provided",
    "not enough credits": "Your organization does not have enough balance",
}


def error_name(status: int, message: str) -> str:
    """Return the name of a failure."""
    fields = fields_of(message)
    if status == 400 and fields:
        if fields[0].startswith("text_prompts"):
            return "invalid_prompts"
        return _BY_FIELD.get(fields[0], "bad_request")
    return _BY_STATUS.get(status, "server_error" if status >= 500 else "bad_request")


def error_message(message: str) -> str:
    """Return the message as the API's clients look for it, with all that ours says."""
    for start, theirs in _PREFIXES.items():
        if message.startswith(start):
            return f"{theirs}: {message}"
    lines = [_RULE.fullmatch(line) or line for line in message.split("; ")]
    return "; ".join(
        line if isinstance(line, str) else f"body.{line[1]} must be {line[3]}; {line[2]} is not"
        for line in lines
    )


def failure_shape(status: int, message: str, headers: Mapping[str, str]) -> Response:
    """Return a failure as Stability's clients read it."""
    body = {
        "id": current_request_id(),
        "name": error_name(status, message),
        "message": error_message(message),
    }
    return json_response(body, status, headers)
