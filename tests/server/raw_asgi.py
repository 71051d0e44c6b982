"""A request made by hand, for what no HTTP client does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.testclient import TestClient

Message = dict[str, Any]


def call(
    client: TestClient,
    path: str,
    receive: Callable[[], Awaitable[Message]],
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> list[Message]:
    """Posts to the application of `client`; what it sent."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        "scheme": "http",
        "server": ("test", 80),
        "client": ("127.0.0.1", 1),
    }
    sent: list[Message] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    return sent
