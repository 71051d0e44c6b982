"""Multipart bodies written by hand, and what is read from them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from server.http.multipart import Part, read_form

CONTENT_TYPE = "multipart/form-data; boundary=xyz"
END = b"--xyz--\r\n"
WANTED = frozenset({"prompt", "init_image"})


def part(disposition: str, data: bytes, *headers: str) -> bytes:
    """A part of a form, its delimiter before it."""
    lines = [f"Content-Disposition: form-data; {disposition}", *headers]
    return b"--xyz\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + data + b"\r\n"


def read(
    body: bytes,
    content_type: str | None = CONTENT_TYPE,
    *,
    chunk: int = 10_000,
    max_file_bytes: int = 1000,
    wanted: frozenset[str] = WANTED,
    on_unknown: Callable[[bytes], None] = lambda name: None,
    keep_first: frozenset[str] = frozenset(),
) -> dict[str, Part]:
    """What the reader makes of the body, when it comes in chunks of that many bytes."""

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk):
            yield body[start : start + chunk]

    return asyncio.run(
        read_form(
            content_type,
            stream(),
            wanted=wanted,
            file_fields=frozenset({"init_image"}),
            max_file_bytes=max_file_bytes,
            on_unknown=on_unknown,
            keep_first=keep_first,
        )
    )
