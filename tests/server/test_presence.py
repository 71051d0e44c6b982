"""Who is alive among the servers of a database, and that no clock is asked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.services.throwaway_postgres import Postgres
from server.accounts.db import Database
from server.accounts.presence import SILENT_LOOKS, Presence
from server.accounts.service import Accounts
from server.accounts.types import Order
from server.errors import DatabaseAway, TooManyAtOnce
from server.settings import Settings
from tests.server.databases import Clock, new_postgres_database
from tests.server.server_process import ROOT
from tests.server.team import Team

pytestmark = pytest.mark.process

HOUR = 3600.0


def run(url: str, test: Callable[[Database], Awaitable[None]]) -> None:
    async def main() -> None:
        database = Database(url)
        await database.migrate()
        try:
            await test(database)
        finally:
            await database.close()

    asyncio.run(main())


def test_who_holds_its_lock_is_alive_without_a_beat(database_url: str, tmp_path: Path) -> None:
    async def test(database: Database) -> None:
        one, other, third = (Presence(database, tmp_path) for _ in range(3))
        assert len({one.name, other.name, third.name}) == 3
        for presence in (one, other, third):
            await presence.enter()
            await presence.enter()
        for _ in range(2 * SILENT_LOOKS):
            assert await one.look() == []
        other.leave()  # as the kernel does for a process that has ended
        # Two that look at once do not take each other for the owner.
        looks = await asyncio.gather(one.look(), third.look())
        assert looks == [[other.name], [other.name]]
        await one.forget(other.name)
        assert await third.look() == []
        third.leave()
        one.leave()

    run(database_url, test)


def test_who_is_elsewhere_is_alive_while_it_beats(database_url: str, tmp_path: Path) -> None:
    async def test(database: Database) -> None:
        here, there = Presence(database, tmp_path / "here"), Presence(database, tmp_path / "there")
        await here.enter()
        await there.enter()
        for _ in range(2 * SILENT_LOOKS):
            assert await here.look() == []
            await there.beat()
        for _ in range(SILENT_LOOKS):
            assert await here.look() == []
        assert await here.look() == [there.name]
        await here.forget(there.name)
        await there.beat()  # It was cut off, not dead: it is back with its next beat.
        assert await here.look() == []
        here.leave()
        there.leave()

    run(database_url, test)


def test_where_no_lock_can_be_made_there_are_beats(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    obstacle = tmp_path / "file"
    obstacle.touch()

    async def test(database: Database) -> None:
        one, other = (Presence(database, obstacle / "folder") for _ in range(2))
        await one.enter()
        await other.enter()
        assert "no lock" in caplog.text
        for _ in range(SILENT_LOOKS):
            assert await one.look() == []
        assert await one.look() == [other.name]

    run(f"sqlite:///{tmp_path}/a.db", test)


def test_an_outage_of_the_database_is_nobodys_silence(postgres: Postgres, tmp_path: Path) -> None:
    async def test(database: Database) -> None:
        here, there = Presence(database, tmp_path / "here"), Presence(database, tmp_path / "there")
        await here.enter()
        await there.enter()
        for _ in range(SILENT_LOOKS):
            assert await here.look() == []
        postgres.stop()
        with pytest.raises(DatabaseAway):
            await here.look()
        postgres.start()
        assert await here.look() == []
        here.leave()
        there.leave()

    with new_postgres_database(postgres) as url:
        run(url, test)


HOLDER = """
import asyncio, sys
from pathlib import Path
from server.accounts.db import Database
from server.accounts.presence import Presence
async def main():
    database = Database(sys.argv[1])
    presence = Presence(database, Path(sys.argv[2]))
    await presence.enter()
    await database.close()
    print(presence.name, flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


def test_a_killed_process_is_dead_at_once(database_url: str, tmp_path: Path) -> None:
    async def test(database: Database) -> None:
        presence = Presence(database, tmp_path)
        await presence.enter()
        process = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-c", HOLDER, database_url, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            name = (await asyncio.to_thread(process.stdout.readline)).strip()
            assert await presence.look() == []
            process.kill()
            process.wait()
            assert await presence.look() == [name]
        presence.leave()

    run(database_url, test)


def test_a_child_does_not_hold_its_dead_parent_s_lock(tmp_path: Path) -> None:
    async def test(database: Database) -> None:
        parent, other = Presence(database, tmp_path), Presence(database, tmp_path)
        await parent.enter()
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        try:
            assert await other.look() == []
            parent.leave()
            give_up = time.monotonic() + 20
            while await other.look() != [parent.name]:
                assert time.monotonic() < give_up
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    run(f"sqlite:///{tmp_path}/a.db", test)


def two_servers(
    url: str, test: Callable[[Accounts, Clock, Accounts, Clock], Awaitable[None]]
) -> None:
    """Two servers with clocks of their own; one has a request of alice's that runs."""
    team = Team(url)
    team.make_key()

    async def main() -> None:
        clocks = Clock(), Clock()
        one, other = (
            Accounts(Settings(database_url=url, request_timeout=10.0), clock=clock)
            for clock in clocks
        )
        await one.start()
        account = await one.keys.account("alice")
        await one.ledger.reserve(
            Order("r", account.id, 4, one.server_name, one.lease_seconds, concurrency=1)
        )
        try:
            await test(one, clocks[0], other, clocks[1])
        finally:
            await one.stop()
            await other.stop()

    asyncio.run(main())


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 365 * 24 * HOUR])
def test_a_clock_that_jumps_releases_nothing_that_runs(database_url: str, jump: float) -> None:
    async def test(one: Accounts, clock: Clock, other: Accounts, others_clock: Clock) -> None:
        others_clock.forward(jump)
        await other.start()
        assert await other.ledger.release_stale() == 0
        clock.forward(-jump)
        assert await one.ledger.release_stale() == 0
        balance = await one.ledger.settle("r", b"answer")
        assert (balance.available, balance.held) == (96, 0)

    two_servers(database_url, test)


def test_a_clock_that_jumps_lifts_no_limit(database_url: str) -> None:
    async def test(one: Accounts, clock: Clock, other: Accounts, _: Clock) -> None:
        clock.forward(HOUR)
        account = await one.keys.account("alice")
        order = Order("s", account.id, 4, one.server_name, one.lease_seconds, concurrency=1)
        with pytest.raises(TooManyAtOnce):
            await one.ledger.reserve(order)

    two_servers(database_url, test)


def test_a_clock_set_back_keeps_nothing_of_the_dead(database_url: str) -> None:
    async def test(one: Accounts, clock: Clock, other: Accounts, others_clock: Clock) -> None:
        one.presence.leave()  # dies
        others_clock.forward(-HOUR)
        await other.start()
        account = await other.keys.account("alice")
        balance = await other.ledger.balance(account.id)
        assert (balance.available, balance.held) == (100, 0)

    two_servers(database_url, test)


def test_the_sweeps_of_a_server_in_a_hurry_are_not_oftener(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its looks would else outrun the others' beats."""

    async def main() -> None:
        accounts = Accounts(Settings(database_url=f"sqlite:///{tmp_path}/a.db"))
        await accounts.start()
        looks: list[Any] = []
        look = accounts.presence.look

        async def counted() -> list[str]:
            looks.append(None)
            return await look()

        monkeypatch.setattr(accounts.presence, "look", counted)
        for _ in range(5):
            await accounts._sweep()
        assert looks == []
        accounts._next_sweep = 0.0
        for _ in range(5):
            await accounts._sweep()
        assert len(looks) == 1
        await accounts.stop()

    asyncio.run(main())


def test_a_server_that_ends_leaves_nothing_behind(database_url: str) -> None:
    async def test(one: Accounts, _: Clock, other: Accounts, __: Clock) -> None:
        await other.start()
        folder = other._lock_folder()
        assert len(list(folder.iterdir())) == 2
        await other.stop()
        await one.stop()
        assert list(folder.iterdir()) == []

    two_servers(database_url, test)
    assert Team(database_url).states() == {"released": 1}
