"""The shape of the contract's answers, and of all failures that no other API has a shape for:
`{"code", "message", "data"}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

SUCCESS_CODE = 0
FAILURE_CODE = -1
# An image costs credits and a health check is of the moment: neither is to be cached.
NOT_KEPT = {"Cache-Control": "no-store"}


def success(data: Mapping[str, Any]) -> Response:
    """Return a success whose `data` is small."""
    body = {"code": SUCCESS_CODE, "message": "success", "data": dict(data)}
    return json_response(body)


def image_body(image_base64: bytes, seed: int, filtered: bool = False) -> bytes:
    """Return a finished image as a JSON body, without a JSON encoder's walk over the base64 text.

    `filtered` is said only where it is true: otherwise data is exactly the contract's.
    """
    head = b'{"code":0,"message":"success","data":{"image":"'
    tail = b',"filtered":true}}' if filtered else b"}}"
    return b"".join((head, image_base64, b'","seed":%d' % seed, tail))


def image_response(body: bytes) -> Response:
    """Return the response whose body `image_body` made."""
    return Response(body, headers=NOT_KEPT, media_type="application/json")


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a failure with its true status."""
    body = {"code": FAILURE_CODE, "message": message, "data": None}
    return json_response(body, status, headers)


def with_member(body: bytes, name: str, value: object) -> bytes:
    """Return an envelope with one more member, without a walk over its megabytes."""
    member = json_bytes({name: value})
    return body[:-1] + b"," + member[1:]


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON, without blanks."""
    return json.dumps(value, separators=(",", ":")).encode()


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response whose body is the value as JSON."""
    body = json_bytes(value)
    return Response(body, status, {**NOT_KEPT, **(headers or {})}, media_type="application/json")
