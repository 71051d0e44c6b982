"""Failures in the shape that clients of A1111's API read: always with `detail`."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from server.http.envelope import json_response

_SAMPLER = "Sampler not found"
_NAMES = {400: "BadRequest", 401: "Unauthorized", 404: "NotFound", 422: "UnprocessableEntity"}


def failure_shape(status: int, message: str, headers: Mapping[str, str]) -> Response:
    """Return a failure; where clients compare `detail` with A1111's words, `errors` has ours."""
    if status == 401:
        # Its clients have a field for a password, and none for a header.
        message += "; here the key is the password of basic authentication, with any user's name"
    detail = message
    if message.startswith(_SAMPLER):
        detail = _SAMPLER
    elif message.startswith("nothing is at "):
        detail = "Not Found"
    body = {
        "error": _NAMES.get(status, "Error"),
        "detail": detail,
        "body": "",
        "errors": message,
    }
    more = {"WWW-Authenticate": "Basic"} if status == 401 else {}
    return json_response(body, status, {**headers, **more})
