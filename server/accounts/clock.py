"""The time as the tables keep it."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]


def now_millis() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000
