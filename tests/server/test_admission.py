"""What a request holds is given back in time, whatever the database and the client do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest
import sqlalchemy as sa
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from pipelines.errors import GenerationFailed
from server.accounts import admission
from server.accounts.access import Caller
from server.accounts.admission import Admission
from server.accounts.audit import audit
from server.accounts.db import Database
from server.accounts.service import Accounts
from server.accounts.tables import accounts as accounts_table
from server.accounts.types import Account, Balance, Order
from server.errors import DatabaseAway
from server.settings import Settings
from tests.server.apis import EDITS, GENERATIONS, Apis
from tests.server.conftest import PATH, MakeClient
from tests.server.stub_engine import StubEngine
from tests.server.team import Team

CROWD = 6
HANGS = 15.0
"""Seconds after which a test that waits for what should not last is ended."""


class Bench:
    def __init__(self, accounts: Accounts, account: Account, url: str) -> None:
        self.accounts = accounts
        self.account = account
        self.url = url

    async def reserved(self) -> Admission:
        request = Request({"type": "http", "headers": []})
        admission = Admission(
            request, Caller("alice", "alice", self.account), self.accounts, ExitStack()
        )
        await admission.reserve(4)
        return admission

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Nobody else's transaction gets on meanwhile."""
        database, locked, let = Database(self.url), asyncio.Event(), asyncio.Event()

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(sa.select(accounts_table.c.id).with_for_update())
            locked.set()
            await let.wait()

        holding = asyncio.create_task(database.write(work, seconds=None))
        await locked.wait()
        try:
            yield
        finally:
            let.set()
            await holding
            await database.close()

    async def balance(self) -> Balance:
        """The balance, once all that was left to the keeper is done."""
        while self.accounts._unsettled:
            await self.accounts._withdraw_unsettled()
        running = self.accounts.database._running
        if running:
            await asyncio.wait(running)
        return await self.accounts.ledger.balance(self.account.id)


def run(url: str, test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        accounts = Accounts(Settings(database_url=url))
        await accounts.start()
        try:
            account, _ = await accounts.keys.create("alice")
            await accounts.ledger.grant(account.id, 100)
            await test(Bench(accounts, account, url))
            assert await audit(accounts.database) == []
        finally:
            await accounts.stop()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(admission, "RELEASE_SECONDS", 0.2)


def test_settling_ends_while_the_database_is_silent(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        held = [await bench.reserved() for _ in range(CROWD)]
        async with asyncio.timeout(HANGS), bench.locked():
            told = await asyncio.gather(*(one.settle(b"x") for one in held), return_exceptions=True)
            await asyncio.gather(*(one.close() for one in held))
        assert [type(error) for error in told] == [DatabaseAway] * CROWD
        assert await bench.balance() == Balance(100, 0)

    run(database_url, test)


def test_closing_ends_while_the_database_is_silent(database_url: str) -> None:
    async def test(bench: Bench) -> None:
        held = [await bench.reserved() for _ in range(CROWD)]
        async with asyncio.timeout(HANGS), bench.locked():
            await asyncio.gather(*(one.close() for one in held))
        assert await bench.balance() == Balance(100, 0)

    run(database_url, test)


def test_what_is_given_up_while_the_keeper_sleeps_is_given_back_at_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: Order) -> None:
        raise DatabaseAway

    async def test(bench: Bench) -> None:
        one = await bench.reserved()
        with monkeypatch.context() as outage:
            outage.setattr(bench.accounts.ledger, "release", away)
            await one.close()
        async with asyncio.timeout(HANGS):
            while await bench.accounts.ledger.balance(bench.account.id) != Balance(100, 0):
                await asyncio.sleep(0.01)

    monkeypatch.setattr("server.accounts.service.SWEEP_SECONDS", 3600.0)
    run(database_url, test)


def test_a_reservation_that_was_given_up_holds_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        async with asyncio.timeout(HANGS), bench.locked():
            told = await asyncio.gather(
                *(bench.reserved() for _ in range(CROWD)), return_exceptions=True
            )
        assert [isinstance(error, DatabaseAway) for error in told] == [True] * CROWD
        await bench.balance()
        # As the requests' ends would have.
        await bench.accounts.ledger.release_stale(bench.accounts.server_name)
        assert await bench.balance() == Balance(100, 0)

    monkeypatch.setattr("server.accounts.db.OPERATION_SECONDS", 0.5)
    run(database_url, test)


def test_a_client_that_leaves_while_it_is_charged_is_on_record_as_charged(
    database_url: str,
) -> None:
    async def test(bench: Bench) -> None:
        one = await bench.reserved()
        settling = asyncio.create_task(one.settle(b"x"))
        await asyncio.sleep(0)
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        await one.close()
        assert (one._credits.charged, one._credits.released) == (4, 0)
        assert await bench.balance() == Balance(96, 0)

    run(database_url, test)


def contract(client: TestClient, picture: bytes, **headers: str) -> None:
    client.post(
        PATH,
        data={"prompt": "a cat", "width": "320", "height": "320"},
        files={"init_image": ("a.png", picture)},
        headers={"Accept": "text/event-stream", **headers},
    )


STREAMS: dict[str, Callable[[TestClient, bytes, str], object]] = {
    "contract": lambda client, picture, key: contract(client, picture, Authorization=key),
    "run": lambda client, picture, key: contract(
        client, picture, **{"Authorization": key, "X-Run-Id": "r" * 16}
    ),
    EDITS: lambda client, _, key: Apis(client, {"Authorization": key}).edit(stream="true"),
    GENERATIONS: lambda client, _, key: Apis(client, {"Authorization": key}).json(
        GENERATIONS, {"prompt": "a cat", "stream": True, "steps": 10}
    ),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_tells_of_a_failure_once_nothing_is_held(
    make_client: MakeClient,
    database_url: str,
    engine: StubEngine,
    picture_file: bytes,
    stream: str,
) -> None:
    team = Team(database_url)
    key = team.make_key(concurrency=1)
    client = make_client(database_url=database_url)
    application = client.app
    found: list[tuple[dict[str, int], dict[str, int]]] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def look(message: Message) -> None:
            if b"internal error" in message.get("body", b""):
                places = application.state.access.places._taken  # type: ignore[attr-defined]
                found.append((await asyncio.to_thread(team.states), dict(places)))
            await send(message)

        await application(scope, receive, look)  # type: ignore[arg-type]

    engine.outcome = GenerationFailed("broken")
    client._transport.app = watched  # type: ignore[attr-defined]
    STREAMS[stream](client, picture_file, key)
    assert found == [({"released": 1}, {})]


def test_who_is_refused_for_its_number_is_told_of_its_rate(
    make_client: MakeClient, database_url: str, picture_file: bytes
) -> None:
    key = Team(database_url).make_key(concurrency=1, rate="5/hour")
    client = make_client(database_url=database_url)
    places = client.app.state.access.places  # type: ignore[attr-defined]
    with places.take("account 1", 1):
        for _ in range(2):
            refused = client.post(PATH, headers={"Authorization": key})
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["ratelimit-policy"] == '"key";q=5;w=3600'
            assert refused.headers["ratelimit-remaining"] == "5"
