from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from server.accounts.api_keys import KeyStore
from server.accounts.audit import audit
from server.accounts.db import Database
from server.accounts.ledger import Ledger
from server.accounts.tables import answers, entries, reservations
from server.accounts.types import (
    Balance,
    DayOfUse,
    Idempotency,
    Order,
)
from server.errors import (
    IdempotencyConflict,
    InsufficientCredits,
    ReservationLost,
    StillRunning,
    TooManyAtOnce,
)
from tests.server.databases import Clock


class Bench:
    """A ledger with one account on 10 credits."""

    def __init__(self, database: Database, ledger: Ledger, clock: Clock, account_id: int) -> None:
        self.database = database
        self.ledger = ledger
        self.clock = clock
        self.account_id = account_id

    def order(self, name: str, amount: int = 4, **changes: Any) -> Order:
        values = {"server": "a:1", "lease_seconds": 60.0, "account_id": self.account_id, **changes}
        return Order(id=name, amount=amount, **values)

    async def balance(self) -> Balance:
        return await self.ledger.balance(self.account_id)

    async def state(self, name: str) -> str:
        query = sa.select(reservations.c.state).where(reservations.c.id == name)
        return str((await self.database.read(lambda c: c.execute(query))).scalar_one())

    async def kept(self) -> list[str]:
        query = sa.select(answers.c.idempotency_key).order_by(answers.c.idempotency_key)
        return list((await self.database.read(lambda c: c.execute(query))).scalars())


def run(url: str, test: Callable[[Bench], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        database, clock = Database(url), Clock()
        await database.migrate()
        try:
            account, _ = await KeyStore(database).create("alice")
            ledger = Ledger(database, clock=clock, **options)
            await ledger.grant(account.id, 100)
            await test(Bench(database, ledger, clock, account.id))
            assert await audit(database) == []
        finally:
            await database.close()

    asyncio.run(main())


def key(name: str, fingerprint: str = "f") -> Idempotency:
    return Idempotency(name, fingerprint)


def test_reserve_and_settle(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        assert await bench.ledger.reserve(bench.order("r")) is None
        assert await bench.balance() == Balance(96, 4)
        assert await bench.ledger.settle("r") == Balance(96, 0)

    run(database_url, test)


def test_every_step_may_be_repeated(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(3):
            await bench.ledger.reserve(bench.order("r"))
        assert await bench.balance() == Balance(96, 4)
        for _ in range(3):
            assert await bench.ledger.settle("r") == Balance(96, 0)
        await bench.ledger.release(bench.order("r"))
        await bench.ledger.reserve(bench.order("r"))
        assert await bench.balance() == Balance(96, 0)
        await bench.ledger.reserve(bench.order("s"))
        for _ in range(3):
            await bench.ledger.release(bench.order("s"))
        assert await bench.balance() == Balance(96, 0)

    run(database_url, test)


def test_a_balance_cannot_be_overdrawn(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.ledger.reserve(bench.order("r", 97))
        with pytest.raises(InsufficientCredits) as caught:
            await bench.ledger.reserve(bench.order("s", 4))
        assert caught.value.available == 3
        assert await bench.balance() == Balance(3, 97)
        await bench.ledger.reserve(bench.order("t", 3))
        assert await bench.balance() == Balance(0, 100)

    run(database_url, test)


def test_many_at_once_take_exactly_what_there_is(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        async def one(number: int) -> bool:
            try:
                await bench.ledger.reserve(bench.order(f"r{number}", 7))
            except InsufficientCredits:
                return False
            await bench.ledger.settle(f"r{number}")
            return True

        done = await asyncio.gather(*map(one, range(60)))
        assert sum(done) == 14
        assert await bench.balance() == Balance(2, 0)

    run(database_url, test)


def test_what_costs_nothing_is_counted_and_moves_nothing(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.ledger.reserve(bench.order("r", 0))
        assert await bench.ledger.settle("r") == Balance(100, 0)
        assert await bench.ledger.usage(bench.account_id, 1) == [DayOfUse(20254, 1, 0)]

    run(database_url, test)


def test_a_lease_that_ran_out_is_released(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.ledger.reserve(bench.order("old", lease_seconds=10))
        bench.clock.forward(10.001)
        await bench.ledger.reserve(bench.order("new", lease_seconds=10))
        assert await bench.ledger.release_stale() == 1
        assert (await bench.state("old"), await bench.state("new")) == ("released", "open")
        assert await bench.balance() == Balance(96, 4)

    run(database_url, test)


def test_a_server_that_starts_again_releases_its_own(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.ledger.reserve(bench.order("mine", server="a:1"))
        await bench.ledger.reserve(bench.order("other", server="b:1"))
        assert await bench.ledger.release_stale("a:1") == 1
        assert (await bench.state("mine"), await bench.state("other")) == ("released", "open")

    run(database_url, test)


def test_settling_what_was_released_charges_it_or_is_refused(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.ledger.reserve(bench.order("r", 60))
        await bench.ledger.reserve(bench.order("s", 20, idempotency=key("k")))
        await bench.ledger.release(bench.order("r"))
        await bench.ledger.release(bench.order("s"))
        assert await bench.ledger.settle("r") == Balance(40, 0)
        with pytest.raises(ReservationLost):  # the key may stand for another request by now
            await bench.ledger.settle("s", b"answer")
        await bench.ledger.reserve(bench.order("t", 40))
        await bench.ledger.release(bench.order("t"))
        await bench.ledger.reserve(bench.order("u", 30))
        with pytest.raises(ReservationLost):
            await bench.ledger.settle("t")
        with pytest.raises(ReservationLost):
            await bench.ledger.settle("never reserved")
        assert await bench.balance() == Balance(10, 30)

    run(database_url, test)


def test_withdrawing_gives_back_what_nobody_got(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        for name, idempotency in (("open", None), ("settled", None), ("kept", key("k"))):
            await bench.ledger.reserve(bench.order(name, 10, idempotency=idempotency))
        await bench.ledger.settle("settled")
        await bench.ledger.settle("kept", b"answer")
        for _ in range(2):
            for name in ("open", "settled", "kept", "unknown"):
                await bench.ledger.withdraw(bench.order(name))
        states = [await bench.state(name) for name in ("open", "settled", "kept")]
        assert states == ["refunded", "refunded", "settled"]
        assert await bench.balance() == Balance(90, 0)
        with pytest.raises(ReservationLost):
            await bench.ledger.settle("settled")

    run(database_url, test)


def test_concurrency_counts_open_reservations_within_their_lease(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        for name in ("r", "s"):
            await bench.ledger.reserve(bench.order(name, concurrency=2, lease_seconds=10))
        with pytest.raises(TooManyAtOnce):
            await bench.ledger.reserve(bench.order("t", concurrency=2))
        await bench.ledger.settle("r")
        await bench.ledger.reserve(bench.order("t", concurrency=2, lease_seconds=10))
        bench.clock.forward(11)
        await bench.ledger.reserve(bench.order("u", concurrency=1))

    run(database_url, test)


def test_the_same_request_gets_the_first_answer(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        ledger, order = bench.ledger, bench.order("r", idempotency=key("k"))
        assert await ledger.answer(bench.account_id, key("k")) is None
        await ledger.reserve(order)
        again = bench.order("s", idempotency=key("k"))
        with pytest.raises(StillRunning):
            await ledger.reserve(again)
        with pytest.raises(StillRunning):
            await ledger.answer(bench.account_id, key("k"))
        await ledger.settle("r", b"answer")
        assert await ledger.reserve(again) == b"answer"
        assert await ledger.answer(bench.account_id, key("k")) == b"answer"
        with pytest.raises(IdempotencyConflict):
            await ledger.reserve(bench.order("t", idempotency=key("k", "other")))
        with pytest.raises(IdempotencyConflict):
            await ledger.answer(bench.account_id, key("k", "other"))
        assert await bench.balance() == Balance(96, 0)

    run(database_url, test)


def test_a_failed_request_frees_its_key(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.ledger.reserve(bench.order("r", idempotency=key("k")))
        await bench.ledger.release(bench.order("r"))
        await bench.ledger.reserve(bench.order("s", idempotency=key("k", "other")))
        await bench.ledger.settle("s", b"answer")
        assert await bench.ledger.answer(bench.account_id, key("k", "other")) == b"answer"

    run(database_url, test)


def test_one_of_many_with_the_same_key_is_charged(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        async def one(number: int) -> str:
            try:
                kept = await bench.ledger.reserve(bench.order(f"r{number}", idempotency=key("k")))
            except StillRunning:
                return "running"
            if kept is not None:
                return "replayed"
            await bench.ledger.settle(f"r{number}", b"answer")
            return "charged"

        done = await asyncio.gather(*map(one, range(20)))
        assert done.count("charged") == 1
        assert await bench.balance() == Balance(96, 0)

    run(database_url, test)


def test_keys_of_two_accounts_do_not_meet(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        bob, _ = await KeyStore(bench.database).create("bob")
        await bench.ledger.reserve(bench.order("r", idempotency=key("k")))
        await bench.ledger.settle("r", b"answer")
        assert await bench.ledger.answer(bob.id, key("k", "other")) is None
        order = bench.order("s", 0, idempotency=key("k", "other"), account_id=bob.id)
        assert await bench.ledger.reserve(order) is None

    run(database_url, test)


def test_answers_are_kept_for_their_time(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.ledger.reserve(bench.order("r", idempotency=key("k")))
        bench.clock.forward(50)
        await bench.ledger.settle("r", b"answer")
        bench.clock.forward(100)
        await bench.ledger.drop_old_answers()
        assert await bench.ledger.answer(bench.account_id, key("k")) == b"answer"
        bench.clock.forward(0.001)
        assert await bench.ledger.answer(bench.account_id, key("k", "other")) is None
        await bench.ledger.reserve(bench.order("s", idempotency=key("k", "other")))
        await bench.ledger.settle("s", b"other answer")
        bench.clock.forward(101)
        await bench.ledger.drop_old_answers()
        assert await bench.kept() == []

    run(database_url, test, answer_seconds=100)


def test_answers_are_kept_within_their_bytes(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        for name, size in (("a", 40), ("b", 40), ("c", 20), ("d", 1), ("e", 101), ("f", 60)):
            bench.clock.forward(1)
            await bench.ledger.reserve(bench.order(name, 1, idempotency=key(name)))
            await bench.ledger.settle(name, b"x" * size)
            if name == "e":  # too big to be kept at all, it pushes none out
                assert await bench.kept() == ["b", "c", "d"]
        assert await bench.kept() == ["c", "d", "f"]

    run(database_url, test, max_answer_bytes=100)


def test_the_answer_just_kept_stays_whatever_the_clock_says(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        for name in ("a", "b", "c", "d"):
            bench.clock.forward(-3600)
            await bench.ledger.reserve(bench.order(name, 1, idempotency=key(name)))
            await bench.ledger.settle(name, b"x" * 50)
            assert await bench.ledger.answer(bench.account_id, key(name)) is not None
        assert await bench.kept() == ["c", "d"]

    run(database_url, test, max_answer_bytes=100)


def test_usage_by_day(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        for day, amounts in enumerate(([4], [5, 6], [], [7])):
            for amount in amounts:
                name = f"{day}-{amount}"
                await bench.ledger.reserve(bench.order(name, amount))
                await bench.ledger.settle(name)
            bench.clock.forward(24 * 3600)
        await bench.ledger.reserve(bench.order("released", 9))
        await bench.ledger.release(bench.order("released"))
        first = 20254
        days = [DayOfUse(first + 1, 2, 11), DayOfUse(first + 3, 1, 7)]
        assert await bench.ledger.usage(bench.account_id, 4) == days
        assert await bench.ledger.usage(bench.account_id, 5) == [DayOfUse(first, 1, 4), *days]

    run(database_url, test)


def test_usage_counts_the_images_that_came(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        for name in ("all", "some"):
            await bench.ledger.reserve(bench.order(name, 16, images=4))
        await bench.ledger.settle("all")
        await bench.ledger.settle("some", None, 12, 3)
        assert await bench.ledger.usage(bench.account_id, 1) == [DayOfUse(20254, 7, 28)]

    run(database_url, test)


@pytest.mark.parametrize("change", ["UPDATE entries SET amount = 1", "DELETE FROM entries"])
def test_entries_are_append_only(database_url: str, change: str) -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(exc.DBAPIError, match="append-only"):
            async with bench.database._engine.begin() as connection:
                await connection.execute(sa.text(change))

    run(database_url, test)


@pytest.mark.parametrize("book", ["available", "held"])
def test_no_book_can_be_below_zero(database_url: str, book: str) -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(exc.IntegrityError):
            await bench.database.write(
                lambda c: c.execute(sa.text(f"UPDATE accounts SET {book} = -1"))
            )

    run(database_url, test)


def test_the_audit_finds_what_is_wrong(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.ledger.reserve(bench.order("r", 10))
        change = "UPDATE accounts SET available = available + 1"
        await bench.database.write(lambda c: c.execute(sa.text(change)))
        assert await audit(bench.database) == ["alice: available: 91 tenths, but entries say 90"]
        await bench.database.write(
            lambda c: c.execute(sa.text("UPDATE accounts SET available = available - 1"))
        )
        extra = entries.insert().values(
            account_id=bench.account_id, reservation_id="r", kind="settle", source="held",
            target="earned", amount=3, created_at=1,
        )  # fmt: skip
        await bench.database.write(lambda c: c.execute(extra))
        assert await audit(bench.database) == [
            "alice: held: 10 tenths, but entries say 7",
            "alice: earned by settled reservations: 0 tenths, but entries say 3",
            "reservation r: an entry of another amount",
            "reservation r is open after reserve, settle",
        ]
        opposite = entries.insert().values(
            account_id=bench.account_id, kind="grant", source="earned",
            target="held", amount=3, created_at=1,
        )  # fmt: skip
        await bench.database.write(lambda c: c.execute(opposite))
        assert len(await audit(bench.database)) == 2

    with pytest.raises(AssertionError, match="an entry of another amount"):
        run(database_url, test)
