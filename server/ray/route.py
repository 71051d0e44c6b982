"""What a front tells its router of a call, and where it reads what that knows. No ray here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from server.replicas.balance import Balance, Size


@dataclass(frozen=True)
class Route:
    """What the router needs to know of a call: an argument of every one, as ``route``.

    ``only`` names the one replica that it is for.
    """

    ident: str = ""
    size: Size = (0, 0)
    seconds: float = 0.0
    avoid: tuple[str, ...] = ()
    only: str | None = None


@cache
def balance_of(app: str) -> Balance:
    """Return this process's balance of an application's replicas."""
    return Balance()
