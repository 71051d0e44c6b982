"""A least-recently-used cache bounded in bytes, which counts its hits.

A cache never changes a picture: what is kept is a pure function of its key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachetools import LRUCache

K = TypeVar("K")
V = TypeVar("V")


@dataclass
class CacheCounts:
    """The hits and misses of a cache."""

    hits: int = 0
    misses: int = 0


class ByteCache(Generic[K, V]):
    """Keeps the values used latest, at most ``max_bytes`` of them. For one thread."""

    def __init__(self, max_bytes: int, size_of: Callable[[V], int]) -> None:
        self._kept: LRUCache[K, V] = LRUCache(maxsize=max_bytes, getsizeof=size_of)
        self._size_of = size_of
        self.counts = CacheCounts()

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The kept value, or a new one, which is kept if it fits at all."""
        kept = self.get(key)
        if kept is not None:
            return kept
        value = make()
        self.keep(key, value)
        return value

    def get(self, key: K) -> V | None:
        """The kept value; counts as a hit or a miss."""
        kept = self._kept.get(key)
        if kept is None:
            self.counts.misses += 1
            return None
        self.counts.hits += 1
        return kept

    def keep(self, key: K, value: V) -> None:
        """Keep a value, if it fits at all."""
        if self._size_of(value) <= self._kept.maxsize:
            self._kept[key] = value

    def take(self, key: K) -> V | None:
        """Return a value and keep it no longer; counts as nothing."""
        value: V | None = self._kept.pop(key, None)
        return value
