"""The time by which a request has to be answered, counted from its arrival at the server."""

from __future__ import annotations

import time

from starlette.types import Scope

_STATE = "arrived"


def stamp_arrival(scope: Scope) -> None:
    """Note the present time as the arrival of a request, unless one is noted already."""
    scope.setdefault("state", {}).setdefault(_STATE, time.monotonic())


def deadline_of(scope: Scope, seconds: float) -> float:
    """Return the moment, in `time.monotonic()` seconds, that is `seconds` after the arrival."""
    stamp_arrival(scope)
    arrived: float = scope["state"][_STATE]
    return arrived + seconds
