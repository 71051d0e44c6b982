"""The ledger against a simple model of it, in every order of operations hypothesis thinks of."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from server.accounts.api_keys import KeyStore
from server.accounts.audit import audit
from server.accounts.db import Database
from server.accounts.ledger import Ledger
from server.accounts.types import Balance, Idempotency, Order
from server.errors import (
    IdempotencyConflict,
    InsufficientCredits,
    ReservationLost,
    StillRunning,
    TooManyAtOnce,
)
from tests.server.databases import Clock

pytestmark = pytest.mark.hypothesis

T = TypeVar("T")
LEASE = 60.0
AGE = 600.0
ACCOUNTS = st.integers(0, 1)
AMOUNTS = st.integers(0, 20)
KEYS = st.none() | st.sampled_from("kl")
PRINTS = st.sampled_from("fg")


@dataclass
class Reservation:
    account: int
    amount: int
    key: str | None
    lease_until: int
    server: str
    state: str = "open"


@dataclass
class Model:
    """What the ledger should be: plain sums in dictionaries."""

    available: list[int] = field(default_factory=lambda: [0, 0])
    held: list[int] = field(default_factory=lambda: [0, 0])
    reservations: dict[str, Reservation] = field(default_factory=dict)
    # (account, key) -> (fingerprint, reservation, expires, answer)
    answers: dict[tuple[int, str], tuple[str, str, int, bytes | None]] = field(default_factory=dict)

    def release(self, name: str) -> None:
        found = self.reservations[name]
        if found.state == "open":
            found.state = "released"
            self.held[found.account] -= found.amount
            self.available[found.account] += found.amount
            self._forget(name)

    def _forget(self, name: str) -> None:
        self.answers = {k: row for k, row in self.answers.items() if row[1] != name}


class LedgerMachine(RuleBasedStateMachine):
    def database_url(self) -> str:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.model = Model()
        self.count = 0

    def do(self, work: Awaitable[T]) -> T:
        async def main() -> T:
            return await work

        return self.runner.run(main())

    def teardown(self) -> None:
        self.do(self.database.close())
        self.runner.close()

    @initialize()
    def start(self) -> None:
        async def main() -> tuple[Database, list[int]]:
            database = Database(self.database_url())
            await database.migrate()
            store = KeyStore(database)
            names = [os.urandom(8).hex() for _ in range(2)]
            return database, [(await store.create(name))[0].id for name in names]

        self.database, self.ids = self.do(main())
        self.ledger = Ledger(self.database, clock=self.clock, answer_seconds=AGE)

    @rule(account=ACCOUNTS, amount=st.integers(0, 60))
    def grant(self, account: int, amount: int) -> None:
        self.do(self.ledger.grant(self.ids[account], amount))
        self.model.available[account] += amount

    @rule(
        account=ACCOUNTS, amount=AMOUNTS, key=KEYS, fingerprint=PRINTS,
        server=st.sampled_from("ab"), concurrency=st.none() | st.integers(1, 3),
    )  # fmt: skip
    def reserve(
        self, account: int, amount: int, key: str | None, fingerprint: str, server: str,
        concurrency: int | None,
    ) -> None:  # fmt: skip
        self.count += 1
        name = f"{self.ids[0]}-{self.count}"
        idempotency = None if key is None else Idempotency(key, fingerprint)
        order = Order(name, self.ids[account], amount, server, LEASE, "", concurrency, idempotency)
        now = self.clock()
        row = None if key is None else self.model.answers.get((account, key))
        if row is not None and row[3] is not None and row[2] < now:
            row = None
        running = sum(
            r.account == account and r.state == "open" and r.lease_until >= now
            for r in self.model.reservations.values()
        )
        if row is not None and row[0] != fingerprint:
            with pytest.raises(IdempotencyConflict):
                self.do(self.ledger.reserve(order))
        elif row is not None and row[3] is None:
            with pytest.raises(StillRunning):
                self.do(self.ledger.reserve(order))
        elif row is not None:
            assert self.do(self.ledger.reserve(order)) == row[3]
        elif concurrency is not None and running >= concurrency:
            with pytest.raises(TooManyAtOnce):
                self.do(self.ledger.reserve(order))
        elif self.model.available[account] < amount:
            with pytest.raises(InsufficientCredits):
                self.do(self.ledger.reserve(order))
        else:
            assert self.do(self.ledger.reserve(order)) is None
            assert self.do(self.ledger.reserve(order)) is None
            self.model.available[account] -= amount
            self.model.held[account] += amount
            lease_until = now + int(LEASE * 1000)
            self.model.reservations[name] = Reservation(account, amount, key, lease_until, server)
            if key is not None:
                self.model.answers[account, key] = (fingerprint, name, 0, None)

    def order_of(self, name: str) -> Order:
        found = self.model.reservations[name]
        return Order(name, self.ids[found.account], found.amount, found.server, LEASE)

    def pick(self, data: st.DataObject) -> tuple[str, Reservation]:
        name = data.draw(st.sampled_from(sorted(self.model.reservations)))
        return name, self.model.reservations[name]

    @precondition(lambda self: self.model.reservations)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        name, found = self.pick(data)
        answer = None if found.key is None else f"answer to {name}".encode()
        account, held = found.account, found.amount
        # Less than was held where not all of the images came.
        amount = data.draw(st.integers(min(1, held), held)) if held else 0
        lost = found.state == "refunded" or (
            found.state == "released"
            and (answer is not None or self.model.available[account] < amount)
        )
        if lost:
            with pytest.raises(ReservationLost):
                self.do(self.ledger.settle(name, answer, amount))
            return
        balance = self.do(self.ledger.settle(name, answer, amount))
        if found.state == "open":
            self.model.held[account] -= held
            self.model.available[account] += held - amount
        elif found.state == "released":
            self.model.available[account] -= amount
        if found.state != "settled" and found.key is not None:
            expires = self.clock() + int(AGE * 1000)
            fingerprint = self.model.answers[account, found.key][0]
            self.model.answers[account, found.key] = (fingerprint, name, expires, answer)
        if found.state != "settled":
            found.amount = amount
        found.state = "settled"
        assert balance == Balance(self.model.available[account], self.model.held[account])

    @precondition(lambda self: self.model.reservations)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name, _ = self.pick(data)
        self.do(self.ledger.release(self.order_of(name)))
        self.model.release(name)

    @precondition(lambda self: self.model.reservations)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        name, found = self.pick(data)
        self.do(self.ledger.withdraw(self.order_of(name)))
        kept = any(row[1] == name for row in self.model.answers.values())
        if found.state == "settled" and not kept:
            self.model.available[found.account] += found.amount
        self.model.release(name)
        if found.state != "settled" or not kept:
            found.state = "refunded"

    @precondition(lambda self: self.model.reservations)
    @rule(data=st.data())
    def reserve_late(self, data: st.DataObject) -> None:
        name, found = self.pick(data)
        if found.state in ("released", "refunded"):
            with pytest.raises(ReservationLost):
                self.do(self.ledger.reserve(self.order_of(name)))
        else:
            assert self.do(self.ledger.reserve(self.order_of(name))) is None

    @rule(account=ACCOUNTS, amount=AMOUNTS, final=st.booleans())
    def release_before_it_comes(self, account: int, amount: int, final: bool) -> None:
        self.count += 1
        name = f"{self.ids[0]}-{self.count}"
        self.model.reservations[name] = Reservation(account, 0, None, 0, "a", "refunded")
        order = Order(name, self.ids[account], amount, "a", LEASE)
        self.do(self.ledger.withdraw(order) if final else self.ledger.release(order))

    @rule(server=st.none() | st.sampled_from("ab"))
    def release_stale(self, server: str | None) -> None:
        stale = [
            name
            for name, found in self.model.reservations.items()
            if found.state == "open"
            and (found.lease_until < self.clock() or found.server == server)
        ]
        assert self.do(self.ledger.release_stale(server)) >= len(stale)
        for name in stale:
            self.model.release(name)

    @rule()
    def drop_old_answers(self) -> None:
        self.do(self.ledger.drop_old_answers())
        now = self.clock()
        self.model.answers = {
            place: row
            for place, row in self.model.answers.items()
            if row[3] is None or row[2] >= now
        }

    @rule(seconds=st.sampled_from([1.0, LEASE, AGE, 86400.0]))
    def wait(self, seconds: float) -> None:
        self.clock.forward(seconds)

    @invariant()
    def the_books_agree(self) -> None:
        for account, account_id in enumerate(self.ids):
            expected = Balance(self.model.available[account], self.model.held[account])
            assert self.do(self.ledger.balance(account_id)) == expected
        assert self.do(audit(self.database)) == []


def test_against_a_model_on_sqlite() -> None:
    class Machine(LedgerMachine):
        def database_url(self) -> str:
            self.folder = tempfile.TemporaryDirectory()
            return f"sqlite:///{Path(self.folder.name) / 'accounts.db'}"

        def teardown(self) -> None:
            super().teardown()
            self.folder.cleanup()

    check(Machine, share=5)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_against_a_model_on_postgresql(database_url: str) -> None:
    class Machine(LedgerMachine):
        def database_url(self) -> str:
            return database_url

    check(Machine, share=12)


def check(machine: type[LedgerMachine], share: int) -> None:
    """An example is thirty operations on a database: of the usual number a share is enough."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=max(2, settings().max_examples // share),
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )
