from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from server.accounts.api_keys import KeyProblem, KeyStore
from server.accounts.db import Database
from server.accounts.key_text import KEY_PREFIX, digest_of, is_well_formed, make_key
from tests.server.databases import Clock

Test = Callable[[Database, KeyStore, Clock], Awaitable[None]]


def run(url: str, test: Test) -> None:
    async def main() -> None:
        database, clock = Database(url), Clock()
        await database.migrate()
        try:
            await test(database, KeyStore(database, clock=clock), clock)
        finally:
            await database.close()

    asyncio.run(main())


def test_the_form_of_a_key() -> None:
    key = make_key()
    assert key.startswith(KEY_PREFIX)
    assert key[4:].isalnum()
    assert len(key) == 4 + 43 + 6
    assert is_well_formed(key)
    assert len({make_key() for _ in range(100)}) == 100


@given(st.integers(4, 52), st.sampled_from("0aZ"))
def test_a_mistyped_key_is_seen_by_its_checksum(place: int, letter: str) -> None:
    key = make_key()
    mistyped = key[:place] + letter + key[place + 1 :]
    assert is_well_formed(mistyped) is (mistyped == key)


@pytest.mark.parametrize("text", ["", "i2i_", "i2i_" + "0" * 48, "x" * 53, "i2i_" + "é" * 49])
def test_what_is_no_key(text: str) -> None:
    assert not is_well_formed(text)


def test_a_key_is_found_and_only_its_digest_is_kept(database_url: str) -> None:
    async def test(database: Database, store: KeyStore, _: Clock) -> None:
        account, key = await store.create("alice", rate="30/minute", concurrency=4)
        await store.create("bob")
        assert await store.find(key) == account
        assert (account.name, account.rate, account.concurrency) == ("alice", "30/minute", 4)
        assert await store.find(make_key()) is None
        assert await store.find(key[:-1]) is None
        rows = await database.read(lambda c: c.execute(sa.text("SELECT * FROM keys")))
        text = repr(rows.all())
        assert digest_of(key) in text
        assert key[4:] not in text

    run(database_url, test)


def test_revocation_holds_at_once(database_url: str) -> None:
    async def test(_: Database, store: KeyStore, clock: Clock) -> None:
        _, key = await store.create("alice")
        _, other = await store.create("bob")
        newer = await store.rotate("alice", grace_seconds=60)
        assert await store.revoke("alice") == 2
        assert await store.find(key) is None
        assert await store.find(newer) is None
        assert await store.find(other) is not None
        assert await store.revoke("alice") == 0
        assert [record.state(clock()) for record in await store.list()] == [
            "revoked",
            "revoked",
            "valid",
        ]

    run(database_url, test)


def test_a_replaced_key_lives_on_for_its_grace_period(database_url: str) -> None:
    async def test(_: Database, store: KeyStore, clock: Clock) -> None:
        account, key = await store.create("alice")
        newer = await store.rotate("alice", grace_seconds=60)
        assert await store.find(key) == await store.find(newer) == account
        clock.forward(50)
        newest = await store.rotate("alice", grace_seconds=60)
        clock.forward(9.999)
        assert await store.find(key) == account
        clock.forward(0.001)
        assert await store.find(key) is None  # a later rotation does not lengthen it
        assert await store.find(newer) == account
        clock.forward(60)
        assert await store.find(newer) is None
        assert await store.find(newest) == account
        states = [record.state(clock()) for record in await store.list()]
        assert states == ["expired", "expired", "valid"]

    run(database_url, test)


def test_names(database_url: str) -> None:
    async def test(_: Database, store: KeyStore, __: Clock) -> None:
        await store.create("alice")
        with pytest.raises(KeyProblem, match="a key named alice already"):
            await store.create("alice")
        for name in ("", "  ", "x" * 101, "a\nb"):
            with pytest.raises(KeyProblem, match="printable"):
                await store.create(name)
        for action in (store.revoke("bob"), store.rotate("bob", 1), store.account("bob")):
            with pytest.raises(KeyProblem, match="no key named bob"):
                await action
        assert (await store.account("alice")).name == "alice"

    run(database_url, test)
