"""Numbers that the engine keeps of what it did: distributions and counts of graphs. No torch here.

One thread writes them, any may read. A reader sees each number as it was at some moment, though not
all of them at the same one.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class Distribution:
    """Values counted by the first of the rising ``bounds`` that is not below them.

    ``counts`` has one place more than there are bounds, for what is above all of them.
    """

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class GraphCounts:
    """How often graphs were captured, could not be, were replayed, and were done without."""

    captures: int = 0
    failures: int = 0
    replays: int = 0
    fallbacks: int = 0

    @property
    def tried(self) -> int:
        """Return how many captures were begun."""
        return self.captures + self.failures

    def capture(self, make: Callable[[], T], what: str) -> T | None:
        """Return what ``make`` captures, or None, said once in the log, where it cannot be."""
        try:
            captured = make()
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            self.failures += 1
            logger.warning("%s is not captured: %s", what, error)
            return None
        self.captures += 1
        return captured

    def count_run(self, captured: bool) -> None:
        """Count one run, by a graph or as it comes."""
        if captured:
            self.replays += 1
        else:
            self.fallbacks += 1
