"""The audit of the ledger: the balances with the entries, the entries with the
reservations. Reads everything in one snapshot; for operators and tests."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.accounts.db import Database
from server.accounts.tables import accounts, entries, reservations

# What entries a reservation has in each state, as (kind, source, target).
_RESERVED = ("reserve", "available", "held")
_RELEASED = ("release", "held", "available")
_RETURNED = ("return", "held", "available")
_HISTORIES = {
    "open": [[_RESERVED]],
    "released": [[_RESERVED, _RELEASED]],
    "settled": [
        [_RESERVED, ("settle", "held", "earned")],
        [_RESERVED, _RETURNED, ("settle", "held", "earned")],
        [_RESERVED, _RELEASED, ("settle", "available", "earned")],
    ],
}
_REFUNDED = ("refund", "earned", "available")
_HISTORIES["refunded"] = [
    *_HISTORIES["released"],
    *([*history, _REFUNDED] for history in _HISTORIES["settled"]),
]


async def audit(database: Database) -> list[str]:
    """A line for each thing that is wrong."""
    return await database.read(_audit, seconds=None)  # It grows with all there ever was.


async def _audit(connection: AsyncConnection) -> list[str]:
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    return [*await _wrong_balances(connection), *await _wrong_histories(connection)]


async def _wrong_balances(connection: AsyncConnection) -> list[str]:
    def moved(book: str) -> sa.Label[int]:
        into = sa.case((entries.c.target == book, entries.c.amount), else_=0)
        out = sa.case((entries.c.source == book, entries.c.amount), else_=0)
        return sa.func.coalesce(sa.func.sum(into - out), 0).label(f"{book}_moved")

    def unended(state: str) -> sa.ScalarSelect[int]:
        query = sa.select(sa.func.coalesce(sa.func.sum(reservations.c.amount), 0)).where(
            reservations.c.account_id == accounts.c.id, reservations.c.state == state
        )
        return query.scalar_subquery()

    query = (
        sa.select(
            accounts.c.name,
            accounts.c.available,
            accounts.c.held,
            moved("available"),
            moved("held"),
            moved("earned"),
            unended("open").label("open"),
            unended("settled").label("settled"),
        )
        .select_from(accounts.outerjoin(entries, entries.c.account_id == accounts.c.id))
        .group_by(accounts.c.id, accounts.c.name, accounts.c.available, accounts.c.held)
    )
    problems = []
    for row in await connection.execute(query):
        for word, stored, summed in (
            ("available", row.available, row.available_moved),
            ("held", row.held, row.held_moved),
            ("held by open reservations", row.held, row.open),
            ("earned by settled reservations", row.settled, row.earned_moved),
        ):
            if stored != summed:
                problems.append(f"{row.name}: {word}: {stored} tenths, but entries say {summed}")
        if row.available < 0 or row.held < 0:
            problems.append(f"{row.name}: a book is below zero")
    return problems


async def _wrong_histories(connection: AsyncConnection) -> list[str]:
    query = (
        sa.select(
            reservations.c.id,
            reservations.c.state,
            reservations.c.amount.label("price"),
            entries.c.kind,
            entries.c.source,
            entries.c.target,
            entries.c.amount,
        )
        .select_from(reservations.outerjoin(entries, entries.c.reservation_id == reservations.c.id))
        .order_by(reservations.c.id, entries.c.id)
    )
    histories: dict[str, tuple[str, int, list[tuple[str, str, str]]]] = {}
    amounts: dict[str, list[int]] = {}
    problems = []
    for row in await connection.execute(query):
        _, _, history = histories.setdefault(row.id, (row.state, row.price, []))
        if row.kind is not None:
            history.append((row.kind, row.source, row.target))
            amounts.setdefault(row.id, []).append(row.amount)
    for reservation_id, (state, amount, history) in histories.items():
        if not _amounts_agree(amount, history, amounts.get(reservation_id, [])):
            problems.append(f"reservation {reservation_id}: an entry of another amount")
        if history not in (_HISTORIES[state] if amount else [[]]):
            kinds = ", ".join(kind for kind, _, _ in history) or "nothing"
            problems.append(f"reservation {reservation_id} is {state} after {kinds}")
    return problems


def _amounts_agree(price: int, history: list[tuple[str, str, str]], amounts: list[int]) -> bool:
    """Return whether the price was taken, and all else that was held has gone back."""
    moved = dict(zip(history, amounts, strict=True))
    held = moved.pop(_RESERVED, price)
    if (released := moved.pop(_RELEASED, None)) is not None:
        # Charged anew, and perhaps less, where it was settled after that.
        return held == released >= price and all(amount == price for amount in moved.values())
    returned = moved.pop(_RETURNED, 0)
    return held == price + returned and all(amount == price for amount in moved.values())
