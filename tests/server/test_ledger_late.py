"""What reaches the database after its request was given up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from server.accounts.db import Database, Work
from server.accounts.ledger import Ledger
from server.accounts.types import Balance, Order
from server.errors import ReservationLost
from tests.server.test_ledger import Bench, key, run


class HeldBack(Database):
    """A database to which no COMMIT gets before `let` is set."""

    let: asyncio.Event
    reached: asyncio.Event

    async def _transaction(self, engine: AsyncEngine, work: Work[Any], *more: Any) -> Any:
        async def held(connection: AsyncConnection) -> Any:
            result = await work(connection)
            self.reached.set()
            await self.let.wait()
            return result

        return await super()._transaction(engine, held, *more)


@pytest.mark.parametrize("give_up", ["release", "withdraw"])
def test_a_reservation_whose_commit_is_on_its_way_is_given_back(
    database_url: str, give_up: str
) -> None:
    async def test(bench: Bench) -> None:
        slow = HeldBack(database_url)
        slow.let, slow.reached = asyncio.Event(), asyncio.Event()
        order = bench.order("r", idempotency=key("k"))
        reserving = asyncio.create_task(Ledger(slow, clock=bench.clock).reserve(order))
        await slow.reached.wait()
        giving_up = asyncio.create_task(getattr(bench.ledger, give_up)(order))
        await asyncio.sleep(0.2)
        slow.let.set()
        await asyncio.gather(reserving, giving_up)
        await slow.close()
        assert await bench.balance() == Balance(100, 0)
        again = bench.order("s", idempotency=key("k"), concurrency=1)
        assert await bench.ledger.reserve(again) is None

    run(database_url, test)


@pytest.mark.parametrize("give_up", ["release", "withdraw"])
def test_a_reservation_that_comes_after_it_was_given_up_does_nothing(
    database_url: str, give_up: str
) -> None:
    async def test(bench: Bench) -> None:
        order: Order = bench.order("r", idempotency=key("k"))
        for _ in range(2):
            await getattr(bench.ledger, give_up)(order)
        for _ in range(2):
            with pytest.raises(ReservationLost):
                await bench.ledger.reserve(order)
        with pytest.raises(ReservationLost):
            await bench.ledger.settle("r")
        assert await bench.balance() == Balance(100, 0)
        again = bench.order("s", idempotency=key("k"), concurrency=1)
        assert await bench.ledger.reserve(again) is None

    run(database_url, test)


def test_what_was_withdrawn_is_not_charged_by_a_settlement_that_comes_late(
    database_url: str,
) -> None:
    async def test(bench: Bench) -> None:
        for name in ("open", "released"):
            await bench.ledger.reserve(bench.order(name))
        await bench.ledger.release(bench.order("released"))
        for name in ("open", "released"):
            for _ in range(2):
                await bench.ledger.withdraw(bench.order(name))
            with pytest.raises(ReservationLost):
                await bench.ledger.settle(name)
            assert await bench.state(name) == "refunded"
        assert await bench.balance() == Balance(100, 0)

    run(database_url, test)
