"""Finished images that are fetched once more: by a short-lived address, or by their run's id.

In this process, or in Redis where the limits are kept there and several servers share them.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Protocol

from server.errors import ImageStoreAway

KEEP_SECONDS = 3600
MAX_BYTES = 256 * 2**20


class ImageStore(Protocol):
    """Keeps images for `KEEP_SECONDS`."""

    async def put(self, name: str, file: bytes) -> None:
        """Keep a file."""

    async def get(self, name: str) -> bytes | None:
        """Return a file, None if it is gone."""

    async def drop(self, name: str) -> bool:
        """Let go of a file; return whether it was there."""

    async def secret(self) -> bytes:
        """Return the key that signs addresses, the same for all who share the store."""

    async def close(self) -> None:
        """Let go of what it holds."""


class MemoryStore:
    """In this process; the oldest go where all are over `MAX_BYTES`."""

    def __init__(self, max_bytes: int = MAX_BYTES, seconds: float = KEEP_SECONDS) -> None:
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._secret = secrets.token_bytes(32)

    async def put(self, name: str, file: bytes) -> None:
        await self.drop(name)
        self._files[name] = (time.monotonic() + self._seconds, file)
        self._bytes += len(file)
        now = time.monotonic()
        while self._files:
            ends, oldest = next(iter(self._files.values()))
            if self._bytes <= self._max_bytes and ends > now:
                break
            self._files.popitem(last=False)
            self._bytes -= len(oldest)

    async def get(self, name: str) -> bytes | None:
        ends, file = self._files.get(name, (0.0, b""))
        return file if ends > time.monotonic() else None

    async def drop(self, name: str) -> bool:
        ends, file = self._files.pop(name, (0.0, b""))
        self._bytes -= len(file)
        return ends > time.monotonic()

    async def secret(self) -> bytes:
        return self._secret

    async def close(self) -> None:
        self._files.clear()


class RedisStore:
    """In Redis, for several servers. Raises ImageStoreAway where it cannot be reached."""

    def __init__(self, url: str, seconds: int = KEEP_SECONDS) -> None:
        # Imported here: a server without Redis should not load its client.
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        self._redis = Redis.from_url(url)
        self._errors = (RedisError, OSError)
        self._seconds = seconds

    async def put(self, name: str, file: bytes) -> None:
        with self._reached():
            await self._redis.set(f"img2img:image:{name}", file, ex=self._seconds)

    async def get(self, name: str) -> bytes | None:
        with self._reached():
            found = await self._redis.get(f"img2img:image:{name}")
        return found if isinstance(found, bytes) else None

    async def drop(self, name: str) -> bool:
        with self._reached():
            return bool(await self._redis.delete(f"img2img:image:{name}"))

    async def secret(self) -> bytes:
        name = "img2img:image-secret"
        with self._reached():
            await self._redis.set(name, secrets.token_bytes(32), nx=True)
            kept = await self._redis.get(name)
        assert isinstance(kept, bytes)
        return kept

    async def close(self) -> None:
        await self._redis.aclose()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise ImageStoreAway from error


def open_store(limits_url: str) -> ImageStore:
    """Return the store that goes with where the limits are kept."""
    url = limits_url.removeprefix("async+")
    return RedisStore(url) if url.startswith(("redis://", "rediss://")) else MemoryStore()


def signature(secret: bytes, name: str, ends: int) -> str:
    """Return what proves that an address was given out."""
    return hmac.new(secret, f"{name} {ends}".encode(), sha256).hexdigest()[:32]
