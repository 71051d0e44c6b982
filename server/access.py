"""Who may come in: keys of the settings, keys of the database, and addresses that guess."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limits import RateLimitItem

from server.auth import AUTHENTICATION_HEADER, AUTHORIZATION_HEADER, KeyRing, strip_bearer
from server.bookkeeping import Account
from server.envelope import TooManyRequests, Unauthorized
from server.key_text import is_well_formed
from server.limits import Places, Rates, parse_rate
from server.settings import Settings

if TYPE_CHECKING:
    from server.accounts import Accounts


@dataclass(frozen=True)
class Caller:
    """Who asks: `identity` is what limits are counted by; an `account` has credits."""

    name: str
    identity: str
    account: Account | None = None
    rate: RateLimitItem | None = None
    concurrency: int | None = None


ANYONE = Caller("anyone", "anyone")


class Access:
    """Tells callers by their keys."""

    def __init__(self, settings: Settings, accounts: Accounts | None) -> None:
        """Raises server.limits.LimitsProblem for a store of limits that cannot be used."""
        self._asks_for_key = settings.asks_for_key
        self._ring = KeyRing(settings.api_keys)
        self._accounts = accounts
        self._rate = parse_rate(settings.rate) if settings.rate else None
        self._concurrency = settings.concurrency or None
        self._failures = parse_rate(settings.auth_failures) if settings.auth_failures else None
        self.rates = Rates(settings.limits_url.get_secret_value())
        self.places = Places()

    async def caller(self, offered: Iterable[str], address: str) -> Caller:
        """The caller by one of the offered header values.

        An address with too many wrong keys is turned away, but for the keys of the database: those
        cannot be guessed, and who holds one should not suffer for a neighbour behind one proxy.
        Raises Unauthorized, TooManyRequests or server.bookkeeping.DatabaseAway.
        """
        if not self._asks_for_key:
            return ANYONE
        keys = [key for key in map(strip_bearer, offered) if key]
        if not keys:
            raise Unauthorized(
                f"no API key: send it in the {AUTHENTICATION_HEADER} or the "
                f"{AUTHORIZATION_HEADER} header"
            )
        wait = await self._wait(address)
        if wait is None and (place := self._ring.find(keys)) is not None:
            name = f"listed key {place + 1}"
            return Caller(name, name, None, self._rate, self._concurrency)
        if self._accounts is not None:
            for key in filter(is_well_formed, keys):
                account = await self._accounts.find(key)
                if account is not None:
                    return self._account_caller(account)
        if wait is not None:
            raise TooManyRequests("too many wrong API keys from this address", wait)
        if self._failures is not None:
            await self.rates.hit(self._failures, "wrong key", address)
        raise Unauthorized("the API key is not known")

    def _account_caller(self, account: Account) -> Caller:
        rate = self._rate if account.rate is None else parse_rate(account.rate)
        concurrency = self._concurrency if account.concurrency is None else account.concurrency
        return Caller(account.name, f"account {account.id}", account, rate, concurrency)

    async def _wait(self, address: str) -> float | None:
        """Seconds that an address has to wait, None if it need not."""
        if self._failures is None:
            return None
        window = await self.rates.look(self._failures, "wrong key", address)
        return None if window.allowed else window.reset
