"""Credits: reserve before the work, settle on success, release otherwise.

Every operation is one transaction, and doing it again does nothing more, so that a caller who does
not know whether it went through repeats it. Each begins by locking the account's row: what happens
to one account happens one after the other, on any database and for any number of servers.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.accounts.books import balance_of, lock, move, spend
from server.accounts.clock import Clock, now_millis
from server.accounts.db import Database
from server.accounts.idempotency import IdempotencyStore
from server.accounts.tables import reservations, servers
from server.accounts.types import (
    Balance,
    DayOfUse,
    Idempotency,
    Order,
    State,
)
from server.errors import InsufficientCredits, ReservationLost, TooManyAtOnce

DAY_MILLIS = 24 * 60 * 60 * 1000


class Ledger:
    """The ledger in one database."""

    def __init__(
        self,
        database: Database,
        *,
        max_answer_bytes: int = 512 * 2**20,
        answer_seconds: float = 24 * 3600,
        clock: Clock = now_millis,
    ) -> None:
        self._database = database
        self._answers = IdempotencyStore(max_answer_bytes, int(answer_seconds * 1000), clock)
        self._clock = clock

    async def grant(self, account_id: int, amount: int) -> Balance:
        """Give credits. Not to be repeated blindly: each call gives anew."""

        async def work(connection: AsyncConnection) -> Balance:
            await lock(connection, account_id)
            now = self._clock()
            await move(connection, account_id, "grant", "issued", "available", amount, now)
            return await balance_of(connection, account_id)

        return await self._database.write(work)

    async def balance(self, account_id: int) -> Balance:
        return await self._database.read(lambda connection: balance_of(connection, account_id))

    async def answer(self, account_id: int, idempotency: Idempotency) -> bytes | None:
        """The kept answer to the same request, or None if there is none.

        Raises IdempotencyConflict or StillRunning.
        """

        async def work(connection: AsyncConnection) -> bytes | None:
            return await self._answers.find(connection, account_id, idempotency)

        return await self._database.read(work)

    async def reserve(self, order: Order) -> bytes | None:
        """Hold the amount; or, where the same request has been answered already, its answer.

        Raises InsufficientCredits, TooManyAtOnce, IdempotencyConflict or StillRunning; and
        ReservationLost where the order was given up before this came through.
        """

        async def work(connection: AsyncConnection) -> bytes | None:
            await lock(connection, order.account_id)
            if (found := await _reservation(connection, order.id)) is not None:
                if found.state in (State.RELEASED, State.REFUNDED):
                    raise ReservationLost
                return None
            if order.idempotency is not None:
                kept = await self._answers.find(connection, order.account_id, order.idempotency)
                if kept is not None:
                    return kept
            now = self._clock()
            await _check_concurrency(connection, order, now)
            await _insert(connection, order, State.OPEN, order.amount, now)
            if order.amount:
                await spend(connection, order.account_id, order.id, "reserve", order.amount, now)
            if order.idempotency is not None:
                await self._answers.expect(
                    connection, order.account_id, order.idempotency, order.id
                )
            return None

        return await self._database.write(work)

    async def settle(
        self,
        reservation_id: str,
        answer: bytes | None = None,
        amount: int | None = None,
        images: int | None = None,
    ) -> Balance:
        """Take the held amount for good, and keep the answer for its Idempotency-Key, as one.

        ``amount`` takes less than was held, for so many ``images``, and the rest goes back: some of
        those that were asked for have not come. From then on both are the reservation's.

        A reservation that was released meanwhile (its lease ran out) is charged anew if it can be.
        Raises ReservationLost; then nothing was charged, and the picture must not be given.
        """

        async def work(connection: AsyncConnection) -> Balance:
            if (found := await _reservation(connection, reservation_id)) is None:
                raise ReservationLost
            held = await _locked(connection, found.account_id, reservation_id)
            if held.state == State.SETTLED:
                return await balance_of(connection, held.account_id)
            if held.state == State.REFUNDED or (
                held.state == State.RELEASED and answer is not None
            ):
                # With its key given up, the client may have asked again under the same one.
                raise ReservationLost
            charged = held.amount if amount is None else amount
            if not min(1, held.amount) <= charged <= held.amount:
                raise ValueError(f"{charged} of {held.amount} tenths cannot be settled")
            if held.state == State.OPEN:
                rest = held.amount - charged
                await self._move(connection, held, "return", "held", "available", rest)
                await self._move(connection, held, "settle", "held", "earned", charged)
            elif charged:
                now = self._clock()
                try:
                    await spend(connection, held.account_id, held.id, "settle", charged, now)
                except InsufficientCredits:
                    raise ReservationLost from None
            came = {} if images is None else {"images": images}
            await self._end(connection, reservation_id, State.SETTLED, amount=charged, **came)
            await self._answers.keep(connection, reservation_id, answer)
            return await balance_of(connection, held.account_id)

        return await self._database.write(work)

    async def release(self, order: Order) -> None:
        """Give an open reservation's amount back; one that has ended stays so.

        One that is not there may be on its way: it will find that it comes too late.
        """
        await self._database.write(lambda connection: self._release(connection, order))

    async def withdraw(self, order: Order) -> None:
        """As `release`, and for good: nothing can be charged for it from then on. A settled one is
        refunded, unless its answer is kept to be fetched.

        For a request whose client was told of a failure while it was unknown whether `settle` had
        gone through, or still will.
        """

        async def work(connection: AsyncConnection) -> None:
            held = await self._release(connection, order)
            if held is None or (
                held.state == State.SETTLED and await self._answers.has(connection, order.id)
            ):
                return
            if held.state == State.SETTLED:
                await self._move(connection, held, "refund", "earned", "available", held.amount)
            await self._end(connection, order.id, State.REFUNDED)

        await self._database.write(work)

    async def release_stale(self, server: str | None = None) -> int:
        """Release what is stale; with `server`, all that one left open. How many.

        Stale is what is beyond its lease, and of no server that `server.accounts.presence` knows:
        whether one of those runs is not a question of time. Give the name of a server only where
        that server cannot be running.
        """

        async def find(connection: AsyncConnection) -> list[Any]:
            stale = ~_is_attended(self._clock())
            if server is not None:
                stale = stale | (reservations.c.server == server)
            query = sa.select(reservations.c.id, reservations.c.account_id)
            query = query.where(reservations.c.state == State.OPEN, stale)
            return list(await connection.execute(query))

        found = await self._database.read(find)
        for row in found:

            async def release(connection: AsyncConnection, row: Any = row) -> None:
                held = await _locked(connection, row.account_id, row.id)
                await self._release_open(connection, held)

            await self._database.write(release)
        return len(found)

    async def drop_old_answers(self) -> None:
        """Forget what is over its age, and the oldest of what is over the store's bytes."""

        async def work(connection: AsyncConnection) -> None:
            await self._answers.drop_old(connection)

        await self._database.write(work)

    async def usage(self, account_id: int, days: int) -> list[DayOfUse]:
        """Return what was settled on each of the last `days` UTC days with any, today included."""
        first = self._clock() // DAY_MILLIS - days + 1

        async def work(connection: AsyncConnection) -> list[DayOfUse]:
            day = sa.cast(reservations.c.ended_at // DAY_MILLIS, sa.BigInteger).label("day")
            images = sa.cast(sa.func.sum(reservations.c.images), sa.BigInteger)
            amount = sa.cast(sa.func.sum(reservations.c.amount), sa.BigInteger)
            query = (
                sa.select(day, images, amount)
                .where(
                    reservations.c.account_id == account_id,
                    reservations.c.state == State.SETTLED,
                    reservations.c.ended_at >= first * DAY_MILLIS,
                )
                .group_by(day)
                .order_by(day)
            )
            return [DayOfUse(*map(int, row)) for row in await connection.execute(query)]

        return await self._database.read(work)

    # Parts of transactions

    async def _release(self, connection: AsyncConnection, order: Order) -> Any:
        """Release the order if it is open, and return it as it was; None where it was not there.

        The account is locked first: a reservation whose COMMIT is still on its way holds that lock,
        and is seen once it is there. One that has not come so far collides with the row that is
        left in its place.
        """
        held = await _locked(connection, order.account_id, order.id)
        if held is None:
            now = self._clock()
            await _insert(connection, order, State.REFUNDED, 0, now, ended_at=now)
        else:
            await self._release_open(connection, held)
        return held

    async def _release_open(self, connection: AsyncConnection, held: Any) -> None:
        if held.state == State.OPEN:
            await self._move(connection, held, "release", "held", "available", held.amount)
            await self._end(connection, held.id, State.RELEASED)
            await self._answers.forget(connection, held.id)

    async def _move(
        self,
        connection: AsyncConnection,
        held: Any,
        kind: str,
        source: str,
        target: str,
        amount: int,
    ) -> None:
        now = self._clock()
        await move(connection, held.account_id, kind, source, target, amount, now, held.id)

    async def _end(
        self,
        connection: AsyncConnection,
        reservation_id: str,
        state: State,
        **more: int,
    ) -> None:
        values = {"state": state, "ended_at": self._clock(), **more}
        await connection.execute(
            reservations.update().where(reservations.c.id == reservation_id).values(values)
        )


async def _locked(connection: AsyncConnection, account_id: int, reservation_id: str) -> Any:
    """The reservation, or None, once its account is locked."""
    await lock(connection, account_id)
    return await _reservation(connection, reservation_id)


async def _reservation(connection: AsyncConnection, reservation_id: str) -> Any:
    columns = reservations.c
    query = sa.select(columns.id, columns.account_id, columns.amount, columns.state)
    return (await connection.execute(query.where(columns.id == reservation_id))).one_or_none()


async def _insert(
    connection: AsyncConnection,
    order: Order,
    state: State,
    amount: int,
    now: int,
    ended_at: int | None = None,
) -> None:
    await connection.execute(
        reservations.insert().values(
            id=order.id,
            account_id=order.account_id,
            amount=amount,
            state=state,
            server=order.server,
            request_id=order.request_id,
            lease_until=now + int(order.lease_seconds * 1000),
            created_at=now,
            ended_at=ended_at,
            images=order.images,
        )
    )


def _is_attended(now: int) -> sa.ColumnElement[bool]:
    """Return whether a reservation is one of a known server's, or within its lease.

    The lease alone would end with the first clock that is set forward.
    """
    known = reservations.c.server.in_(sa.select(servers.c.name))
    return known | (reservations.c.lease_until >= now)


async def _check_concurrency(connection: AsyncConnection, order: Order, now: int) -> None:
    if order.concurrency is None:
        return
    query = sa.select(sa.func.count()).where(
        reservations.c.account_id == order.account_id,
        reservations.c.state == State.OPEN,
        _is_attended(now),
    )
    if (await connection.execute(query)).scalar_one() >= order.concurrency:
        raise TooManyAtOnce(order.concurrency)
