"""The types of keys and credits, without a database in them.

So a server that needs none does not load one either.

DatabaseAway                     503   it cannot be reached; later may help
DatabaseUnusable                       the URL or the schema is wrong
LedgerError
+-- InsufficientCredits          402   `available` tenths
+-- TooManyAtOnce                429   the account's other requests still run
+-- ReservationLost              503   it was released meanwhile and cannot be had again
IdempotencyError
+-- IdempotencyConflict          409   the Idempotency-Key stands for another request
+-- StillRunning                 409   the first request with that key has not ended
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DatabaseAway(Exception):
    """The database cannot be reached or did not answer in time; trying again later may help."""


class DatabaseUnusable(Exception):
    """The URL is wrong, or the schema is newer than this server; the message says which."""


class LedgerError(Exception):
    """A refusal of the ledger."""


class InsufficientCredits(LedgerError):
    def __init__(self, available: int) -> None:
        super().__init__("not enough credits")
        self.available = available


class TooManyAtOnce(LedgerError):
    pass


class ReservationLost(LedgerError):
    pass


class IdempotencyError(Exception):
    """A refusal of an Idempotency-Key."""


class IdempotencyConflict(IdempotencyError):
    pass


class StillRunning(IdempotencyError):
    pass


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
    """The state of a reservation. It leaves `open` once."""

    OPEN = "open"
    SETTLED = "settled"
    RELEASED = "released"
    REFUNDED = "refunded"


@dataclass(frozen=True)
class Order:
    """An order to reserve. `id` is the server's own for this request: never a client's word.

    `amount` in tenths; the lease runs `lease_seconds`; `concurrency` is the number of the account's
    reservations that may be open, this one included.
    """

    id: str
    account_id: int
    amount: int
    server: str
    lease_seconds: float
    request_id: str = ""
    concurrency: int | None = None
    idempotency: Idempotency | None = None


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
