"""Values tried as keys, counted by the address they come from and by its network."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from weakref import WeakValueDictionary

from limits import RateLimitItem

from server.accounts.rate_limits import Count, Rates

NETWORK_TIMES = 10
"""How many times the tries of one address a whole network has."""

_IPV4_NETWORK_BITS = 24
_IPV6_NETWORK_BITS = 64


@dataclass(frozen=True)
class Source:
    """The source of a try: an address, and its network if it is an IP address."""

    address: str
    network: str | None


def source_of(host: str) -> Source:
    """The source that a peer's address stands for; an IPv4-mapped IPv6 address is an IPv4 one."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return Source(host[:100], None)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    bits = _IPV4_NETWORK_BITS if address.version == 4 else _IPV6_NETWORK_BITS
    network = ipaddress.ip_network((address, bits), strict=False)
    return Source(str(address), str(network))


@dataclass(frozen=True)
class Try:
    """A value that was counted; the last count is the one that refuses, if one does."""

    counts: tuple[Count, ...] = ()

    @property
    def allowed(self) -> bool:
        return all(count.allowed for count in self.counts)


class Guesses:
    """Counts tries under one rate; none, if there is no rate."""

    def __init__(self, rates: Rates, rate: RateLimitItem | None) -> None:
        self._rates = rates
        self._rate = rate
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def turn(self, source: Source) -> asyncio.Lock:
        """Return the lock to hold from counting a value to giving it back.

        So that right values which come at once, each counted for a moment, are not too many.
        """
        name = source.network or source.address
        # Not setdefault(): that makes a lock each time, and drops it.
        turn = self._turns.get(name)
        if turn is None:
            turn = self._turns[name] = asyncio.Lock()
        return turn

    async def count(self, source: Source) -> Try:
        """Count one value."""
        if self._rate is None:
            return Try()
        own = await self._rates.count(self._rate, "wrong key", source.address)
        # What its address refuses is not the network's: one address cannot lock out all of it.
        if not own.allowed or source.network is None:
            return Try((own,))
        of_all = await self._rates.count(
            self._rate, "wrong key", source.network, times=NETWORK_TIMES
        )
        return Try((own, of_all))

    async def give_back(self, tried: Try) -> None:
        """The value was right: it was no guess."""
        for count in tried.counts:
            await self._rates.take_back(count)

    async def wait(self, tried: Try) -> int:
        """Seconds after which one that was refused may try again."""
        return await self._rates.reset(tried.counts[-1])
