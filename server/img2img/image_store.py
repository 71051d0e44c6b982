"""Finished images that are fetched once more: by a short-lived address, or by their run's id.

In this process, or in Redis where the limits are kept there and several servers share them.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from server.errors import ImageStoreAway

KEEP_SECONDS = 3600
REDIS_SECONDS = 1.0
"""Seconds for a connection to Redis, and for each of its answers but what a file's bytes take."""
REDIS_BYTES_PER_SECOND = 5e6
"""What a file's bytes are given time for on their way to Redis and back."""


class ImageStore(Protocol):
    """Keeps images for `KEEP_SECONDS`. Raises ImageStoreAway where it cannot."""

    async def put(self, name: str, file: bytes, promised: float = KEEP_SECONDS) -> None:
        """Keep a file; after ``promised`` seconds it may go before its time for want of room."""

    async def get(self, name: str) -> bytes | None:
        """Return a file, None if it is gone."""

    async def drop(self, name: str) -> bool:
        """Let go of a file; return whether it was there."""

    async def secret(self) -> bytes:
        """Return the key that signs addresses, the same for all who share the store."""

    async def close(self) -> None:
        """Let go of what it holds."""


@dataclass(frozen=True)
class _Kept:
    file: bytes
    promised: float
    ends: float


class MemoryStore:
    """In this process, at most ``max_bytes``; what was promised never goes for want of room."""

    def __init__(self, max_bytes: int, seconds: float = KEEP_SECONDS) -> None:
        self._files: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._secret = secrets.token_bytes(32)

    async def put(self, name: str, file: bytes, promised: float = KEEP_SECONDS) -> None:
        now = time.monotonic()
        self._pop(name)
        while self._files and next(iter(self._files.values())).ends <= now:
            self._pop(next(iter(self._files)))
        short = self._bytes + len(file) - self._max_bytes
        if short > 0:
            lent = {name: kept for name, kept in self._files.items() if kept.promised <= now}
            if sum(len(kept.file) for kept in lent.values()) < short:
                raise ImageStoreAway
            for other, kept in lent.items():
                if short <= 0:
                    break
                self._pop(other)
                short -= len(kept.file)
        self._files[name] = _Kept(file, now + promised, now + self._seconds)
        self._bytes += len(file)

    async def get(self, name: str) -> bytes | None:
        kept = self._files.get(name)
        return kept.file if kept is not None and kept.ends > time.monotonic() else None

    async def drop(self, name: str) -> bool:
        kept = self._pop(name)
        return kept is not None and kept.ends > time.monotonic()

    def _pop(self, name: str) -> _Kept | None:
        if (kept := self._files.pop(name, None)) is not None:
            self._bytes -= len(kept.file)
        return kept

    async def secret(self) -> bytes:
        return self._secret

    async def close(self) -> None:
        self._files.clear()
        self._bytes = 0


class RedisStore:
    """In Redis, for several servers; within the bounds that Redis itself was given."""

    def __init__(self, url: str, seconds: int = KEEP_SECONDS) -> None:
        # Imported here: a server without Redis should not load its client.
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        # Its own limit is one for all: a file's way may take long, and a silence may not.
        self._redis = Redis.from_url(url, socket_timeout=None, socket_connect_timeout=REDIS_SECONDS)
        self._errors = (RedisError, OSError)
        self._seconds = seconds

    async def put(self, name: str, file: bytes, promised: float = KEEP_SECONDS) -> None:
        async with self._reached(len(file)):
            await self._redis.set(f"img2img:image:{name}", file, ex=self._seconds)

    async def get(self, name: str) -> bytes | None:
        async with self._reached():
            size = await self._redis.strlen(f"img2img:image:{name}")
        async with self._reached(size):
            found = await self._redis.get(f"img2img:image:{name}")
        return found if isinstance(found, bytes) else None

    async def drop(self, name: str) -> bool:
        async with self._reached():
            return bool(await self._redis.delete(f"img2img:image:{name}"))

    async def secret(self) -> bytes:
        name = "img2img:image-secret"
        async with self._reached():
            await self._redis.set(name, secrets.token_bytes(32), nx=True)
            kept = await self._redis.get(name)
        assert isinstance(kept, bytes)
        return kept

    async def close(self) -> None:
        await self._redis.aclose()

    @asynccontextmanager
    async def _reached(self, file_bytes: int = 0) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(REDIS_SECONDS + file_bytes / REDIS_BYTES_PER_SECOND):
                yield
        except self._errors as error:
            raise ImageStoreAway from error


def open_store(limits_url: str, max_bytes: int) -> ImageStore:
    """Return the store that goes with where the limits are kept.

    ``max_bytes`` is its room where that is this process.
    """
    url = limits_url.removeprefix("async+")
    return RedisStore(url) if url.startswith(("redis://", "rediss://")) else MemoryStore(max_bytes)


def signature(secret: bytes, name: str, ends: int) -> str:
    """Return what proves that an address was given out."""
    return hmac.new(secret, f"{name} {ends}".encode(), sha256).hexdigest()[:32]
