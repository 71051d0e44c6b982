"""Rates by the `limits` library, and how many requests of one key run at the same time.

Rates are counted in this process, or in Redis for several servers. While Redis is away each server
counts for itself, so that requests neither fail nor run free of limits.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from limits import RateLimitItem
from limits import errors as limits_errors
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from server.rates import LimitsProblem

logger = logging.getLogger(__name__)

RETRY_STORE_SECONDS = 5.0
_MEMORY = "memory://"
_STEP_SECONDS = 1.0
_STORE_PROBLEMS = {
    "unknown storage scheme": "unknown scheme",
    "prerequisite not available": "its client is not installed",
}


@dataclass(frozen=True)
class Window:
    """The window of a rate: `remaining` of `limit` in `seconds`; all again after `reset` s."""

    allowed: bool
    limit: int
    seconds: int
    remaining: int
    reset: int

    @property
    def headers(self) -> dict[str, str]:
        """The RateLimit fields of the IETF's draft, and the three older ones clients know."""
        return {
            "RateLimit-Policy": f'"key";q={self.limit};w={self.seconds}',
            "RateLimit": f'"key";r={self.remaining};t={self.reset}',
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset),
        }


@dataclass(frozen=True)
class Place:
    """The counter of events in a fixed window."""

    rate: RateLimitItem
    key: str
    storage: Storage

    async def add(self, number: int) -> int:
        """Add to the count and return it. Raises StorageError."""
        return await self.storage.incr(self.key, self.rate.get_expiry(), number)


@dataclass(frozen=True)
class Count:
    """An event that was counted: whether it was within the rate, and where it can be undone."""

    allowed: bool
    place: Place


class OwnStorage(MemoryStorage):
    """The store in this process, which keeps to intervals when the wall clock is set back.

    The library asks that clock for the time: what was counted before would lie in the future, and
    refuse everything until the clock has come there again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ahead = _wall_ahead()

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        self._follow_clock()
        return await super().acquire_entry(key, limit, expiry, amount)

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        self._follow_clock()
        return await super().get_moving_window(key, limit, expiry)

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        self._follow_clock()
        return await super().incr(key, expiry, amount)

    async def get_expiry(self, key: str) -> float:
        self._follow_clock()
        return await super().get_expiry(key)

    def _follow_clock(self) -> None:
        back = self._ahead - _wall_ahead()
        if 0 < back < _STEP_SECONDS:  # A clock that is corrected little by little.
            return
        self._ahead -= back
        if back <= 0:
            return
        for events in self.events.values():
            for entry in events:
                entry.atime -= back
                entry.expiry -= back
        for key in self.expirations:
            self.expirations[key] -= back


def _wall_ahead() -> float:
    return time.time() - time.monotonic()


class Rates:
    """Counts events by name: over moving windows, and over fixed ones where counts are undone."""

    def __init__(self, url: str = _MEMORY) -> None:
        """`url`: `memory://` or `redis://host:6379`. Raises LimitsProblem."""
        self._own = MovingWindowRateLimiter(OwnStorage())
        self._shared = self._own if url == _MEMORY else MovingWindowRateLimiter(_storage(url))
        self._shared_again_at = 0.0

    async def hit(self, rate: RateLimitItem, *names: str) -> Window:
        """Count one event if the rate allows it."""
        limiter = self._limiter()
        try:
            return await _hit(limiter, rate, names)
        except StorageError as error:
            self._fall_back(error)
            return await _hit(self._own, rate, names)

    async def look(self, rate: RateLimitItem, *names: str) -> Window:
        """Return whether the rate would allow one more event; counts none."""
        limiter = self._limiter()
        try:
            return await _window(limiter, rate, names, await limiter.test(rate, *names))
        except StorageError as error:
            self._fall_back(error)
            return await _window(self._own, rate, names, await self._own.test(rate, *names))

    async def count(self, rate: RateLimitItem, *names: str, times: int = 1) -> Count:
        """Count one event in a fixed window, whether the rate or `times` of it allows it or not.

        The window begins with its first event. What is counted at once by many, and by many
        servers, is numbered through.
        """
        place = Place(rate, rate.key_for(*names), self._limiter().storage)
        try:
            number = await place.add(1)
        except StorageError as error:
            self._fall_back(error)
            place = replace(place, storage=self._own.storage)
            number = await place.add(1)
        return Count(number <= rate.amount * times, place)

    async def take_back(self, count: Count) -> None:
        """Undo a count, where it was made."""
        try:
            # Its window may have ended: what would be below zero would let more into the next.
            if await count.place.add(-1) < 0:
                await count.place.add(1)
        except StorageError as error:
            self._fall_back(error)

    async def reset(self, count: Count) -> int:
        """Whole seconds until the count's window ends, at least 1."""
        place, seconds = count.place, count.place.rate.get_expiry()
        try:
            ends_at = await place.storage.get_expiry(place.key)
        except StorageError as error:
            self._fall_back(error)
            return seconds
        return min(max(1, math.ceil(ends_at - time.time())), seconds)

    async def close(self) -> None:
        """Close the connections to the shared store."""
        storage = self._shared.storage
        if isinstance(storage, RedisStorage) and isinstance(storage.bridge, RedispyBridge):
            connections: Any = storage.bridge.get_connection()
            await connections.aclose()

    def _limiter(self) -> MovingWindowRateLimiter:
        return self._own if time.monotonic() < self._shared_again_at else self._shared

    def _fall_back(self, error: StorageError) -> None:
        self._shared_again_at = time.monotonic() + RETRY_STORE_SECONDS
        logger.warning(
            "the store of limits is away; counting in this process",
            extra={"fields": {"error": type(error.storage_error).__name__}},
        )


def _storage(url: str) -> Storage:
    options: dict[str, float | str | bool] = {}
    if url.startswith("redis"):
        options = {
            "implementation": "redispy",
            "wrap_exceptions": True,
            "socket_timeout": 1.0,
            "socket_connect_timeout": 1.0,
        }
    try:
        storage = storage_from_string(f"async+{url}", **options)
    except (limits_errors.ConfigurationError, ValueError) as error:
        # The libraries' own words repeat the URL, or the part of a password that they stumble over.
        reason = next(
            (words for sign, words in _STORE_PROBLEMS.items() if sign in str(error)),
            "give redis://HOST:6379, or redis://:PASSWORD@HOST:6379 with / and @ as %2F and %40",
        )
        raise LimitsProblem(f"the URL of the limits' store cannot be used: {reason}") from None
    assert isinstance(storage, Storage)
    return storage


async def _hit(
    limiter: MovingWindowRateLimiter, rate: RateLimitItem, names: tuple[str, ...]
) -> Window:
    return await _window(limiter, rate, names, await limiter.hit(rate, *names))


async def _window(
    limiter: MovingWindowRateLimiter, rate: RateLimitItem, names: tuple[str, ...], allowed: bool
) -> Window:
    stats = await limiter.get_window_stats(rate, *names)
    reset = max(1, math.ceil(stats.reset_time - time.time()))
    seconds = int(rate.get_expiry())
    return Window(allowed, rate.amount, seconds, max(0, stats.remaining), min(reset, seconds))


class Places:
    """The concurrency limiter: requests of one name in this process at the same time."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, name: str, limit: int | None) -> Iterator[bool]:
        """True and a place until the block ends; False if `limit` places are taken."""
        if limit is not None and self._taken[name] >= limit:
            yield False
            return
        self._taken[name] += 1
        try:
            yield True
        finally:
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]
