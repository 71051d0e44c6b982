"""The one assertion of every failure's shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol


class AnyResponse(Protocol):
    """What httpx's and requests' responses have in common."""

    status_code: int

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> bytes: ...


def assert_failure(response: AnyResponse, status: int, *said: str) -> str:
    """The response is a failure of that status whose message holds each of `said`."""
    assert response.status_code == status, response.content[:500]
    assert response.headers["content-type"] == "application/json"
    body = json.loads(response.content)
    assert list(body) == ["code", "message", "data"]
    assert body["code"] == -1
    assert body["data"] is None
    message = body["message"]
    assert isinstance(message, str)
    assert message
    for part in said:
        assert part in message, message
    assert response.headers["x-request-id"]
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    return message
