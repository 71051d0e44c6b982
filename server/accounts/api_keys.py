"""API keys and the accounts they open: made, found, listed, revoked, replaced."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection

from server.accounts.books import move
from server.accounts.clock import Clock, now_millis
from server.accounts.db import Database
from server.accounts.key_text import digest_of, make_key
from server.accounts.tables import accounts, keys
from server.accounts.types import Account

_LOOKUP_LENGTH = 16
MAX_NAME_LENGTH = 100


class KeyProblem(Exception):
    """An operation on keys that cannot be done; the message says why."""


@dataclass(frozen=True)
class KeyRecord:
    """A key as it may be shown: `lookup` is the start of its digest. Times in milliseconds."""

    account: Account
    lookup: str
    available: int
    held: int
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    def state(self, now: int) -> str:
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is None:
            return "valid"
        return "expired" if self.expires_at <= now else "expiring"


class KeyStore:
    """The keys in one database. Every look is at the database: what is revoked is so at once."""

    def __init__(self, database: Database, *, clock: Clock = now_millis) -> None:
        self._database = database
        self._clock = clock

    async def find(self, key: str) -> Account | None:
        """The account that a valid key opens."""
        digest = digest_of(key)

        async def work(connection: AsyncConnection) -> Account | None:
            query = (
                sa.select(keys.c.digest, *_ACCOUNT)
                .join(accounts, accounts.c.id == keys.c.account_id)
                .where(keys.c.lookup == digest[:_LOOKUP_LENGTH], self._valid())
            )
            found = None
            for row in await connection.execute(query):
                if hmac.compare_digest(row.digest, digest):
                    found = _account(row)
            return found

        return await self._database.read(work)

    async def create(
        self,
        name: str,
        *,
        rate: str | None = None,
        concurrency: int | None = None,
        tenths: int = 0,
    ) -> tuple[Account, str]:
        """An account of that name with so many tenths of a credit, and its key, or neither.

        Raises KeyProblem.
        """
        _check_name(name)
        key = make_key()

        async def work(connection: AsyncConnection) -> Account:
            row = (
                await connection.execute(
                    accounts.insert()
                    .values(name=name, rate=rate, concurrency=concurrency, created_at=self._clock())
                    .returning(*_ACCOUNT)
                )
            ).one()
            await self._add(connection, row.id, key)
            await move(connection, row.id, "grant", "issued", "available", tenths, self._clock())
            return _account(row)

        try:
            return await self._database.write(work), key
        except exc.IntegrityError:
            raise KeyProblem(f"there is a key named {name} already; rotate replaces it") from None

    async def rotate(self, name: str, grace_seconds: float) -> str:
        """A new key for the account; its older ones stay valid for `grace_seconds`.

        Raises KeyProblem.
        """
        key = make_key()

        async def work(connection: AsyncConnection) -> None:
            account_id = await self._id_of(connection, name)
            until = self._clock() + int(grace_seconds * 1000)
            await connection.execute(
                keys.update()
                .where(keys.c.account_id == account_id, self._valid())
                .where(keys.c.expires_at.is_(None) | (keys.c.expires_at > until))
                .values(expires_at=until)
            )
            await self._add(connection, account_id, key)

        await self._database.write(work)
        return key

    async def revoke(self, name: str) -> int:
        """Make every key of the account invalid now; how many were valid. Raises KeyProblem."""

        async def work(connection: AsyncConnection) -> int:
            account_id = await self._id_of(connection, name)
            done = await connection.execute(
                keys.update()
                .where(keys.c.account_id == account_id, self._valid())
                .values(revoked_at=self._clock())
            )
            return done.rowcount

        return await self._database.write(work)

    async def account(self, name: str) -> Account:
        """The account of that name. Raises KeyProblem."""
        _check_name(name)

        async def work(connection: AsyncConnection) -> Account:
            query = sa.select(*_ACCOUNT).where(accounts.c.name == name)
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                raise KeyProblem(f"there is no key named {name}")
            return _account(row)

        return await self._database.read(work)

    async def list(self) -> list[KeyRecord]:
        """Every key there ever was, by name and age."""

        async def work(connection: AsyncConnection) -> list[KeyRecord]:
            query = (
                sa.select(
                    *_ACCOUNT,
                    accounts.c.available,
                    accounts.c.held,
                    keys.c.lookup,
                    keys.c.created_at,
                    keys.c.expires_at,
                    keys.c.revoked_at,
                )
                .join(keys, accounts.c.id == keys.c.account_id)
                .order_by(accounts.c.name, keys.c.id)
            )
            return [
                KeyRecord(
                    _account(row),
                    row.lookup,
                    row.available,
                    row.held,
                    row.created_at,
                    row.expires_at,
                    row.revoked_at,
                )
                for row in await connection.execute(query)
            ]

        return await self._database.read(work)

    def _valid(self) -> sa.ColumnElement[bool]:
        unexpired = keys.c.expires_at.is_(None) | (keys.c.expires_at > self._clock())
        return keys.c.revoked_at.is_(None) & unexpired

    async def _add(self, connection: AsyncConnection, account_id: int, key: str) -> None:
        digest = digest_of(key)
        await connection.execute(
            keys.insert().values(
                account_id=account_id,
                lookup=digest[:_LOOKUP_LENGTH],
                digest=digest,
                created_at=self._clock(),
            )
        )

    async def _id_of(self, connection: AsyncConnection, name: str) -> int:
        _check_name(name)
        query = sa.select(accounts.c.id).where(accounts.c.name == name).with_for_update()
        account_id = (await connection.execute(query)).scalar_one_or_none()
        if account_id is None:
            raise KeyProblem(f"there is no key named {name}")
        return int(account_id)


def _check_name(name: str) -> None:
    # What is not printable includes bytes of the command line that are no UTF-8.
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise KeyProblem(f"a name has 1 to {MAX_NAME_LENGTH} printable characters")


_ACCOUNT = (accounts.c.id, accounts.c.name, accounts.c.rate, accounts.c.concurrency)


def _account(row: Any) -> Account:
    return Account(row.id, row.name, row.rate, row.concurrency)
