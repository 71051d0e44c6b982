"""A rate as an operator writes it, such as `30/minute`."""

from __future__ import annotations

from limits import RateLimitItem, parse

from server.errors import ConfigurationError

MAX_AMOUNT = 10**9
MAX_WINDOW_SECONDS = 100 * 366 * 24 * 3600


class LimitsProblem(ConfigurationError, ValueError):
    """A rate or the store's URL cannot be used; the message says why."""


def parse_rate(text: str) -> RateLimitItem:
    """`30/minute` as the library's item. Raises LimitsProblem."""
    shown = repr(text[:40])
    try:
        rate = parse(text)
    except ValueError:
        raise LimitsProblem(
            f"{shown} is not a rate such as 30/minute, 5/second, 1000/day"
        ) from None
    if rate.amount < 1 or any(separator in text for separator in ",;|"):
        raise LimitsProblem(f"{shown} is not one rate of at least 1")
    if rate.amount > MAX_AMOUNT or not 1 <= rate.get_expiry() <= MAX_WINDOW_SECONDS:
        raise LimitsProblem(f"{shown} is not at most {MAX_AMOUNT} in at most 100 years")
    return rate
