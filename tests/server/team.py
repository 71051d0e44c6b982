"""Accounts in a test's database, made and looked at beside the server that uses it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from server.accounts.api_keys import KeyStore
from server.accounts.audit import audit
from server.accounts.db import Database
from server.accounts.ledger import Ledger
from server.accounts.tables import reservations
from server.accounts.types import Balance

T = TypeVar("T")
_migrated: set[str] = set()
"""Databases that are at the newest revision: each is asked of many times, and made once."""


@dataclass(frozen=True)
class Team:
    url: str

    def do(self, work: Callable[[Database], Awaitable[T]]) -> T:
        async def main() -> T:
            database = Database(self.url)
            try:
                if self.url not in _migrated:
                    await database.migrate()
                    _migrated.add(self.url)
                return await work(database)
            finally:
                await database.close()

        return asyncio.run(main())

    def make_key(self, name: str = "alice", tenths: int = 100, **limits: Any) -> str:
        async def work(database: Database) -> str:
            account, key = await KeyStore(database).create(name, **limits)
            await Ledger(database).grant(account.id, tenths)
            return key

        return self.do(work)

    def balance(self, name: str = "alice") -> Balance:
        async def work(database: Database) -> Balance:
            account = await KeyStore(database).account(name)
            return await Ledger(database).balance(account.id)

        return self.do(work)

    def states(self) -> dict[str, int]:
        """How many reservations are in each state."""
        query = sa.select(reservations.c.state, sa.func.count()).group_by(reservations.c.state)
        rows = self.do(lambda d: d.read(lambda c: c.execute(query)))
        return {row[0]: row[1] for row in rows}

    def wait_for(self, states: dict[str, int], seconds: float = 20.0) -> None:
        give_up = time.monotonic() + seconds
        while (found := self.states()) != states:
            assert time.monotonic() < give_up, found
            time.sleep(0.05)

    def problems(self) -> list[str]:
        return self.do(audit)
