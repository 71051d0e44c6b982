"""The types of keys and credits, without a database in them.

So a server that needs none does not load one either.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Account:
    """The owner of a key. `rate` as `30/minute`; None leaves a limit to the server's setting."""

    id: int
    name: str
    rate: str | None
    concurrency: int | None


@dataclass(frozen=True)
class Idempotency:
    """A client's Idempotency-Key, and the SHA-256 in hex of what it asked with it."""

    key: str
    fingerprint: str


class State(StrEnum):
    """The state of a reservation. It leaves `open` once.

    `released` may still be charged anew; `refunded` is given up for good.
    """

    OPEN = "open"
    SETTLED = "settled"
    RELEASED = "released"
    REFUNDED = "refunded"


@dataclass(frozen=True)
class Order:
    """An order to reserve. `id` is the server's own for this request: never a client's word.

    `amount` in tenths for so many `images`; the lease runs `lease_seconds`; `concurrency` is the
    number of the account's reservations that may be open, this one included.
    """

    id: str
    account_id: int
    amount: int
    server: str
    lease_seconds: float
    request_id: str = ""
    concurrency: int | None = None
    idempotency: Idempotency | None = None
    images: int = 1


@dataclass(frozen=True)
class Balance:
    """An account's books, in tenths."""

    available: int
    held: int


@dataclass(frozen=True)
class DayOfUse:
    """The credits settled on one UTC day, `day` days after 1970-01-01; `amount` in tenths."""

    day: int
    pictures: int
    amount: int
