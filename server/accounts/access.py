"""Access by key: keys of the settings, keys of the database, and addresses that guess."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limits import RateLimitItem

from server.accounts.guesses import Guesses, Source, Try, source_of
from server.accounts.key_ring import (
    AUTHENTICATION_HEADER,
    AUTHORIZATION_HEADER,
    KeyRing,
    strip_bearer,
)
from server.accounts.key_text import is_well_formed
from server.accounts.rate_limits import Places, Rates
from server.accounts.types import Account
from server.http.errors import TooManyRequests, Unauthorized
from server.rates import parse_rate
from server.settings import Settings

if TYPE_CHECKING:
    from server.accounts.service import Accounts


@dataclass(frozen=True)
class Caller:
    """The sender of a request: `identity` is what limits are counted by; an `account` has
    credits."""

    name: str
    identity: str
    account: Account | None = None
    rate: RateLimitItem | None = None
    concurrency: int | None = None


ANYONE = Caller("anyone", "anyone")


class Access:
    """Tells callers by their keys."""

    def __init__(self, settings: Settings, accounts: Accounts | None) -> None:
        """Raises server.rates.LimitsProblem for a store of limits that cannot be
        used."""
        self._asks_for_key = settings.asks_for_key
        self._ring = KeyRing(settings.api_keys)
        self._accounts = accounts
        self._rate = parse_rate(settings.rate) if settings.rate else None
        self._concurrency = settings.concurrency or None
        self.rates = Rates(settings.limits_url.get_secret_value())
        failures = parse_rate(settings.auth_failures) if settings.auth_failures else None
        self._guesses = Guesses(self.rates, failures)
        self.places = Places()

    async def caller(self, offered: Iterable[str], address: str) -> Caller:
        """The caller by the first of the offered header values that is a key.

        Every other value before it is counted, and an address or a network with too many of them is
        turned away, but for the keys of the database: those cannot be guessed, and who holds one
        should not suffer for a neighbour behind one proxy.
        Raises Unauthorized, TooManyRequests or server.errors.DatabaseAway.
        """
        if not self._asks_for_key:
            return ANYONE
        keys = dict.fromkeys(key for key in map(strip_bearer, offered) if key)
        if not keys:
            raise Unauthorized(
                f"no API key: send it in the {AUTHENTICATION_HEADER} or the "
                f"{AUTHORIZATION_HEADER} header"
            )
        source = source_of(address)
        refused: Try | None = None
        for key in keys:
            known = self._unguessable(key) if is_well_formed(key) else self._listed(key, source)
            if isinstance(found := await known, Caller):
                return found
            tried = found or await self._guesses.count(source)
            refused = refused if tried.allowed else tried
        if refused is not None:
            wait = await self._guesses.wait(refused)
            raise TooManyRequests("too many wrong API keys from this address or network", wait)
        raise Unauthorized("the API key is not known")

    async def _listed(self, key: str, source: Source) -> Caller | Try:
        """The caller by a key of the settings, which may be guessable; or the value as counted."""
        async with self._guesses.turn(source):
            tried = await self._guesses.count(source)
            if not tried.allowed or (caller := self._listed_caller(key)) is None:
                return tried
            await self._guesses.give_back(tried)
            return caller

    async def _unguessable(self, key: str) -> Caller | None:
        """The caller by a value of 256 random bits: right, it counts nothing and is let in.

        So it need not be counted before it is looked up: the count only words the refusal.
        """
        if (caller := self._listed_caller(key)) is not None or self._accounts is None:
            return caller
        account = await self._accounts.find(key)
        return None if account is None else self._account_caller(account)

    def _listed_caller(self, key: str) -> Caller | None:
        place = self._ring.find([key])
        if place is None:
            return None
        name = f"listed key {place + 1}"
        return Caller(name, name, None, self._rate, self._concurrency)

    def _account_caller(self, account: Account) -> Caller:
        rate = self._rate if account.rate is None else parse_rate(account.rate)
        concurrency = self._concurrency if account.concurrency is None else account.concurrency
        return Caller(account.name, f"account {account.id}", account, rate, concurrency)
