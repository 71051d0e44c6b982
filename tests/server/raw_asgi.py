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
    sent: list[Message] = []
    asyncio.run(asked(client, path, receive, headers, sent))
    return sent


async def asked(
    client: TestClient,
    path: str,
    receive: Callable[[], Awaitable[Message]],
    headers: Iterable[tuple[bytes, bytes]],
    sent: list[Message],
    method: str = "POST",
) -> None:
    """Asks the application of `client`, which adds to ``sent`` what it sends."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        "scheme": "http",
        "server": ("test", 80),
        "client": ("127.0.0.1", 1),
    }

    async def send(message: Any) -> None:
        sent.append(message)

    await client.app(scope, receive, send)  # type: ignore[arg-type]
