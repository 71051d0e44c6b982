"""The books of accounts: parts of transactions that lock an account, read it, and move credits."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.accounts.pricing import credits_text
from server.accounts.tables import accounts, entries
from server.accounts.types import Balance
from server.errors import InsufficientCredits


async def lock(connection: AsyncConnection, account_id: int) -> None:
    """Make what happens to the account happen in turn, until the transaction ends."""
    await connection.execute(
        sa.select(accounts.c.id).where(accounts.c.id == account_id).with_for_update()
    )


async def balance_of(connection: AsyncConnection, account_id: int) -> Balance:
    query = sa.select(accounts.c.available, accounts.c.held).where(accounts.c.id == account_id)
    return Balance(*(await connection.execute(query)).one())


async def spend(
    connection: AsyncConnection,
    account_id: int,
    reservation_id: str,
    kind: str,
    amount: int,
    at: int,
) -> None:
    """Move from `available` to where `kind` puts it, or raise InsufficientCredits."""
    balance = await balance_of(connection, account_id)
    if balance.available < amount:
        raise InsufficientCredits(
            f"not enough credits: this picture costs {credits_text(amount)}, "
            f"{credits_text(balance.available)} are left",
            balance.available,
        )
    target = "held" if kind == "reserve" else "earned"
    await move(connection, account_id, kind, "available", target, amount, at, reservation_id)


async def move(
    connection: AsyncConnection,
    account_id: int,
    kind: str,
    source: str,
    target: str,
    amount: int,
    at: int,
    reservation_id: str | None = None,
) -> None:
    """Write one entry, and with it the balances that it changes. Nothing, where it is of 0."""
    if not amount:
        return
    await connection.execute(
        entries.insert().values(
            account_id=account_id,
            reservation_id=reservation_id,
            kind=kind,
            source=source,
            target=target,
            amount=amount,
            created_at=at,
        )
    )
    changes: dict[str, Any] = {}
    for book in ("available", "held"):
        if book in (source, target):
            column = accounts.c[book]
            changes[book] = column - amount if book == source else column + amount
    await connection.execute(accounts.update().where(accounts.c.id == account_id).values(**changes))
