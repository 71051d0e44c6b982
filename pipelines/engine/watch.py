"""Notices work that does not end. A thread that hangs cannot say so itself: others ask its watch.

Pure: no torch; the clock is an argument.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """The time that a unit of work may take before it is said to hang, and before it is given up.

    It hangs after ``seconds`` or ``factor`` times what was expected, whichever is more: no unit of
    a card takes ten seconds, one of a CPU is predicted within a factor of three, and what is run
    again in parts takes three times as long. It is lost after ``lost_seconds`` or ``lost_factor``
    times what was expected: by then everyone who waited at the default limit of 300 s has been
    answered 504, so ending the process costs nobody a picture.
    """

    seconds: float = 10.0
    factor: float = 5.0
    lost_seconds: float = 300.0
    lost_factor: float = 30.0


@dataclass(frozen=True)
class _Unit:
    began: float
    expected: float


class Watch:
    """Times what one thread does; the thread calls `unit`, any other one reads."""

    def __init__(
        self,
        name: str,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.patience = patience or Patience()
        self._clock = clock
        self._unit: _Unit | None = None
        self._told: _Unit | None = None

    @contextmanager
    def unit(self, expected: float = 0.0) -> Iterator[None]:
        """Watch the block, which is expected to take so many seconds."""
        unit = self._unit = _Unit(self._clock(), expected)
        try:
            yield
        finally:
            self._unit = None
            if self._told is unit:
                seconds = self._clock() - unit.began
                logger.warning("%s came back after %.1f s", self.name, seconds)

    @property
    def hang(self) -> str | None:
        """Say that the present unit takes far too long, or None. The log is told once a unit."""
        unit = self._unit
        if unit is None:
            return None
        seconds = self._clock() - unit.began
        if seconds <= max(self.patience.seconds, self.patience.factor * unit.expected):
            return None
        if self._told is not unit:
            self._told = unit
            logger.error("%s hangs: %.3g s were expected", self.name, unit.expected)
        return f"{self.name} hangs, for {seconds:.0f} s now"

    @property
    def lost(self) -> bool:
        """Return whether the present unit takes so long that it is not expected to end."""
        unit = self._unit
        if unit is None:
            return False
        limit = max(self.patience.lost_seconds, self.patience.lost_factor * unit.expected)
        return self._clock() - unit.began > limit

    @property
    def remaining(self) -> float:
        """Return the seconds in which the present unit should end, were it not to hang."""
        unit = self._unit
        if unit is None:
            return 0.0
        return max(0.0, unit.began + self.patience.factor * unit.expected - self._clock())
