"""Answers kept for their Idempotency-Key, bounded in age and bytes.

A row stands for the key from the reservation on; its body comes with the settlement, in the same
transaction. Every method is part of a transaction that has locked the account, `find` excepted.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.accounts.clock import Clock
from server.accounts.tables import answers
from server.accounts.types import Idempotency
from server.errors import IdempotencyConflict, StillRunning


class IdempotencyStore:
    """At most `max_bytes` of answers, each for `millis`; beyond the bytes the oldest go.

    Which is older is no question of clocks, of which one may be set back: `created_at` of an answer
    is later than that of all that were kept before it.
    """

    def __init__(self, max_bytes: int, millis: int, clock: Clock) -> None:
        self._max_bytes = max_bytes
        self._millis = millis
        self._clock = clock

    async def find(
        self, connection: AsyncConnection, account_id: int, idempotency: Idempotency
    ) -> bytes | None:
        """The answer to the same request. Raises IdempotencyConflict or StillRunning."""
        query = sa.select(answers.c.fingerprint, answers.c.body, answers.c.expires_at).where(
            answers.c.account_id == account_id, answers.c.idempotency_key == idempotency.key
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None or (row.body is not None and row.expires_at < self._clock()):
            return None
        if row.fingerprint != idempotency.fingerprint:
            raise IdempotencyConflict
        if row.body is None:
            raise StillRunning
        return bytes(row.body)

    async def expect(
        self,
        connection: AsyncConnection,
        account_id: int,
        idempotency: Idempotency,
        reservation_id: str,
    ) -> None:
        """Let the key stand for this request; `find` has found nothing just before."""
        same = (answers.c.account_id == account_id) & (answers.c.idempotency_key == idempotency.key)
        await connection.execute(answers.delete().where(same))  # One that has expired.
        now = self._clock()
        await connection.execute(
            answers.insert().values(
                account_id=account_id,
                idempotency_key=idempotency.key,
                fingerprint=idempotency.fingerprint,
                reservation_id=reservation_id,
                created_at=now,
                expires_at=now + self._millis,
                size=0,
            )
        )

    async def keep(
        self, connection: AsyncConnection, reservation_id: str, answer: bytes | None
    ) -> None:
        """Keep the answer if the reservation has a key, and make room for it."""
        own = answers.c.reservation_id == reservation_id
        if answer is None or len(answer) > self._max_bytes:
            await connection.execute(answers.delete().where(own))
            return
        now = self._clock()
        latest = sa.select(sa.func.max(answers.c.created_at)).where(answers.c.size > 0)
        created_at = max(now, ((await connection.execute(latest)).scalar_one() or 0) + 1)
        kept = await connection.execute(
            answers.update()
            .where(own)
            .values(
                body=answer,
                size=len(answer),
                created_at=created_at,
                expires_at=now + self._millis,
            )
        )
        if kept.rowcount:
            await self._make_room(connection, reservation_id)

    async def has(self, connection: AsyncConnection, reservation_id: str) -> bool:
        """Return whether this reservation's answer is there to be fetched."""
        query = sa.select(sa.func.count()).where(
            answers.c.reservation_id == reservation_id, answers.c.body.is_not(None)
        )
        return bool((await connection.execute(query)).scalar_one())

    async def forget(self, connection: AsyncConnection, reservation_id: str) -> None:
        """Free the reservation's key for another try."""
        await connection.execute(answers.delete().where(answers.c.reservation_id == reservation_id))

    async def drop_old(self, connection: AsyncConnection) -> None:
        """Forget what is over its age, and the oldest of what is over the bytes."""
        expired = answers.c.expires_at < self._clock()
        await connection.execute(answers.delete().where(expired, answers.c.body.is_not(None)))
        await self._make_room(connection)

    async def _make_room(self, connection: AsyncConnection, spared: str = "") -> None:
        """Forget the oldest, but for that of the reservation `spared`."""
        total = sa.select(sa.func.coalesce(sa.func.sum(answers.c.size), 0))
        surplus = int((await connection.execute(total)).scalar_one()) - self._max_bytes
        while surplus > 0:
            oldest = (
                sa.select(answers.c.account_id, answers.c.idempotency_key, answers.c.size)
                .where(answers.c.body.is_not(None), answers.c.reservation_id != spared)
                .order_by(answers.c.created_at, answers.c.reservation_id)
                .limit(1)
            )
            row = (await connection.execute(oldest)).one_or_none()
            if row is None:
                return
            same = (answers.c.account_id == row.account_id) & (
                answers.c.idempotency_key == row.idempotency_key
            )
            await connection.execute(answers.delete().where(same))
            surplus -= row.size
