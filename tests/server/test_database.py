from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from scripts.services.throwaway_postgres import Postgres
from server.accounts.api_keys import KeyStore
from server.accounts.audit import audit
from server.accounts.db import (
    MIGRATIONS,
    Database,
    alembic_config,
)
from server.accounts.key_text import digest_of, make_key
from server.accounts.ledger import Ledger
from server.accounts.tables import answers, metadata
from server.accounts.types import Balance
from server.errors import DatabaseAway, DatabaseUnusable, OutcomeUnknown
from tests.server.databases import new_postgres_database, sqlite_url

REVISIONS = ["0001", "0002", "0003", "0004", "0005"]

KEY = make_key()
RESERVATION = (
    "INSERT INTO reservations (id, account_id, amount, state, server, request_id, lease_until, "
    "created_at, ended_at) VALUES"
)
ROWS = {
    "0001": [
        "INSERT INTO accounts VALUES (7, 'alice', 90, 6, '9/hour', 3, 1000)",
        "INSERT INTO keys VALUES "
        f"(1, 7, '{digest_of(KEY)[:16]}', '{digest_of(KEY)}', 1000, NULL, NULL)",
        f"{RESERVATION} ('r', 7, 4, 'settled', 's', 'id', 9000, 1000, 2000)",
        f"{RESERVATION} ('q', 7, 6, 'open', 's', 'id', 9000, 1000, NULL)",
        "INSERT INTO entries VALUES (1001, 7, NULL, 'grant', 'issued', 'available', 100, 1000)",
        "INSERT INTO entries VALUES (1002, 7, 'r', 'reserve', 'available', 'held', 4, 1000)",
        "INSERT INTO entries VALUES (1003, 7, 'r', 'settle', 'held', 'earned', 4, 2000)",
        "INSERT INTO entries VALUES (1004, 7, 'q', 'reserve', 'available', 'held', 6, 2000)",
    ],
    "0002": ["INSERT INTO answers VALUES (7, 'k', 'f', 'r', 2000, 9000, 1, '1')"],
    "0003": ["INSERT INTO servers VALUES ('a:1:b', 3)"],
    "0004": [],
    "0005": [],
}
"""What a database of each revision holds beyond what the one before does."""


def test_every_revision_is_tested() -> None:
    found = ScriptDirectory(str(MIGRATIONS)).walk_revisions()
    assert [revision.revision for revision in found][::-1] == REVISIONS


@pytest.mark.parametrize("old", REVISIONS)
def test_upgrade_from(old: str, database_url: str) -> None:
    def make_old(connection: Connection) -> None:
        command.upgrade(alembic_config(connection), old)
        for revision in REVISIONS[: REVISIONS.index(old) + 1]:
            for statement in ROWS[revision]:
                connection.exec_driver_sql(statement)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async def main() -> None:
        database = Database(database_url)
        if database.is_sqlite:
            database._prepare_file()
        await database.write(lambda c: c.run_sync(make_old))
        await database.migrate()
        assert await database.read(lambda c: c.run_sync(differences)) == []
        assert await audit(database) == []
        account = await KeyStore(database).find(KEY)
        assert account is not None
        assert (account.name, account.rate, account.concurrency) == ("alice", "9/hour", 3)
        ledger = Ledger(database)
        assert await ledger.balance(account.id) == Balance(90, 6)
        assert await ledger.release_stale() == 1
        assert await ledger.balance(account.id) == Balance(96, 0)
        await database.close()

    asyncio.run(main())


def test_long_fingerprints_are_those_of_today(tmp_path: Path) -> None:
    kept = "v1/images/edits " + "0" * 64, "1" * 64

    def make_old(connection: Connection) -> None:
        command.upgrade(alembic_config(connection), "0003")
        for statement in ROWS["0001"]:
            connection.exec_driver_sql(statement)
        for number, text in enumerate(kept):
            connection.exec_driver_sql(
                f"INSERT INTO answers VALUES (7, 'k{number}', '{text}', 'r', 2000, 9000, 1, '1')"
            )

    async def main() -> None:
        database = Database(sqlite_url(tmp_path))  # PostgreSQL never took them
        database._prepare_file()
        await database.write(lambda c: c.run_sync(make_old))
        await database.migrate()
        query = sa.select(answers.c.fingerprint).order_by(answers.c.idempotency_key)
        found = (await database.read(lambda c: c.execute(query))).scalars().all()
        assert found == [hashlib.sha256(kept[0].encode()).hexdigest(), kept[1]]
        await database.close()

    asyncio.run(main())


def test_servers_that_start_together_upgrade_once(database_url: str) -> None:
    async def main() -> None:
        databases = [Database(database_url) for _ in range(5)]
        await asyncio.gather(*(database.migrate() for database in databases))
        await KeyStore(databases[0]).create("alice")
        await asyncio.gather(*(database.migrate() for database in databases))
        assert (await KeyStore(databases[4]).account("alice")).name == "alice"
        for database in databases:
            await database.close()

    asyncio.run(main())


def test_a_newer_schema_is_refused(database_url: str) -> None:
    async def main() -> None:
        database = Database(database_url)
        await database.migrate()
        change = sa.text("UPDATE alembic_version SET version_num = '9999'")
        await database.write(lambda c: c.execute(change))
        with pytest.raises(DatabaseUnusable, match="revision 9999, is newer than this server"):
            await database.migrate()
        await database.close()

    asyncio.run(main())


def test_a_transaction_outlives_its_caller(database_url: str) -> None:
    async def main() -> None:
        database = Database(database_url)
        await database.migrate()
        task = asyncio.ensure_future(KeyStore(database).create("alice"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await database.close()
        assert (await KeyStore(database).account("alice")).name == "alice"
        await database.close()

    asyncio.run(main())


def test_the_sqlite_file(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database(f"sqlite:///{tmp_path}/new/folder/a.db")
        await database.migrate()
        mode = (tmp_path / "new/folder/a.db").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            row = await database.read(lambda c, p=pragma: c.execute(sa.text(f"PRAGMA {p}")))
            assert row.scalar_one() == value
        await database.close()

    asyncio.run(main())


def test_another_process_that_writes_is_waited_for_and_given_up_on(tmp_path: Path) -> None:
    async def main() -> None:
        url = sqlite_url(tmp_path)
        database = Database(url, busy_seconds=0.1)
        await database.migrate()
        with sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseAway):
                await KeyStore(database).create("alice")
            assert await KeyStore(database).list() == []  # reading goes on
            other.execute("COMMIT")
        other.close()
        await KeyStore(database).create("alice")
        await database.close()

    asyncio.run(main())


def test_what_did_not_begin_in_its_time_never_does(tmp_path: Path) -> None:
    async def main() -> None:
        url = sqlite_url(tmp_path)
        database = Database(url)
        await database.migrate()
        begun: list[int] = []

        async def one(number: int) -> None:
            async def work(_: AsyncConnection) -> None:
                begun.append(number)

            with pytest.raises(DatabaseAway) as told:
                await database.write(work, seconds=0.1)
            assert not isinstance(told.value, OutcomeUnknown)

        with sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            await asyncio.gather(*map(one, range(5)))
            other.execute("COMMIT")
        other.close()
        await database.close()
        assert begun == []

    asyncio.run(main())


def test_a_commit_that_nobody_acknowledged_may_have_happened(database_url: str) -> None:
    def lost(_: Connection) -> None:
        raise OSError("the connection was lost")

    async def main() -> None:
        database = Database(database_url)
        await database.migrate()
        store = KeyStore(database)
        sa.event.listen(database._engine.sync_engine, "commit", lost)
        with pytest.raises(OutcomeUnknown):
            await store.create("alice")
        with pytest.raises(DatabaseAway) as caught:
            await store.list()
        assert caught.type is DatabaseAway  # Nothing that is only read is in doubt.
        sa.event.remove(database._engine.sync_engine, "commit", lost)
        await database.close()

    asyncio.run(main())


def test_a_value_that_is_refused_is_no_database_that_is_away(postgres: Postgres) -> None:
    async def main(url: str) -> None:
        database = Database(url)
        await database.migrate()
        refused: list[tuple[str, dict[str, str]]] = [
            ("SELECT 1 / 0", {}),
            ("SELECT CAST(:text AS text)", {"text": "a\0b"}),
            ("SELECT nothing", {}),
        ]
        for statement, values in refused:
            with pytest.raises(sa.exc.DBAPIError):
                await database.read(lambda c, s=statement, v=values: c.execute(sa.text(s), v))
        await database.close()

    with new_postgres_database(postgres) as url:
        asyncio.run(main(url))


def test_a_file_that_is_removed_or_replaced_is_not_gone_on_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "accounts.db"
    away = tmp_path / "away.db"

    async def main() -> None:
        database = Database(f"sqlite:///{file}")
        await database.migrate()
        store = KeyStore(database)
        _, key = await store.create("alice")
        file.rename(away)
        with pytest.raises(DatabaseAway):
            await store.create("bob")
        with pytest.raises(DatabaseAway):
            await store.find(key)
        assert not file.exists()
        file.touch()  # As a backup that is put in its place.
        with pytest.raises(DatabaseAway):
            await store.find(key)
        told = caplog.records[-1].__dict__["fields"]["reason"]
        assert told.endswith("replaced while it was open: restart the server")
        away.rename(file)
        account = await store.find(key)
        assert account is not None
        assert account.name == "alice"
        await database.close()

    asyncio.run(main())


def test_a_new_file_that_another_process_sets_up_is_waited_for_and_given_up_on(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        url = sqlite_url(tmp_path)
        with sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None) as other:
            other.execute("CREATE TABLE held (a)")
            other.execute("BEGIN")
            other.execute("SELECT * FROM held").fetchall()  # A reader alone forbids the switch.
            impatient = Database(url, busy_seconds=0.1)
            with pytest.raises(DatabaseAway):
                await impatient.migrate()
            await impatient.close()
            patient = Database(url)
            migration = asyncio.create_task(patient.migrate())
            await asyncio.sleep(0.2)
            assert not migration.done()
            other.execute("COMMIT")
            await migration
        other.close()
        await KeyStore(patient).create("alice")
        await patient.close()

    asyncio.run(main())


def test_postgresql_that_goes_away_and_comes_back(postgres: Postgres) -> None:
    async def main(url: str) -> None:
        database = Database(url)
        await database.migrate()
        store = KeyStore(database)
        await store.create("alice")
        postgres.stop()
        for _ in range(2):
            with pytest.raises(DatabaseAway):
                await store.account("alice")
            with pytest.raises(DatabaseAway):
                await store.create("bob")
        postgres.start()
        assert (await store.account("alice")).name == "alice"
        await database.close()

    with new_postgres_database(postgres) as url:
        asyncio.run(main(url))


def test_postgresql_that_does_not_answer(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.accounts.db.STATEMENT_SECONDS", 0.5)
    monkeypatch.setattr("server.accounts.db.CONNECT_SECONDS", 0.5)

    async def main(url: str) -> None:
        database = Database(url)
        await database.migrate()
        store = KeyStore(database)
        await store.create("alice")
        postgres.freeze(True)
        try:
            with pytest.raises(DatabaseAway):
                await store.account("alice")
        finally:
            postgres.freeze(False)
        assert (await store.account("alice")).name == "alice"
        await database.close()

    with new_postgres_database(postgres) as url:
        asyncio.run(main(url))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "cannot be read"),
        ("mysql://a:secret@b/c", "mysql is not supported"),
        ("sqlite://", "has to be a file"),
        ("sqlite:///:memory:", "has to be a file"),
    ],
)
def test_urls_that_cannot_be_used(url: str, said: str) -> None:
    with pytest.raises(DatabaseUnusable, match=said) as caught:
        asyncio.run(Database(url).migrate())
    assert "secret" not in str(caught.value)


def test_the_driver_is_chosen_and_the_password_hidden() -> None:
    database = Database("postgresql://a:secret@b:1/c?sslmode=require")
    assert database.url.drivername == "postgresql+asyncpg"
    assert dict(database.url.query) == {"ssl": "require"}
    assert database.name == "postgresql+asyncpg://a:***@b:1/c?ssl=require"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@secret@host/db",
        "postgresql://u:p@secret/part@host/db",
        "postgresql://u:p?x@secret@host/db",
        "postgresql://u/x:secret@host/db",
        "postgresql://u:p@s:secret@host/db",
        "postgres://u:p@secret@[::1]:5432/db",
    ],
)
def test_an_unescaped_at_in_a_password_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(DatabaseUnusable, match="write %40") as caught:
        Database(url)
    assert "secret" not in str(caught.value)


def test_an_unescaped_at_need_not_be_in_a_password() -> None:
    with pytest.raises(DatabaseUnusable, match="a database's name write %40"):
        Database("postgresql://host/d@b")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://a@b:secret@host/db", "a%40b:***@host/db"),
        ("postgresql://a:secret/x@host/db", "a:***@host/db"),
        ("postgresql://a:%40secret@host/d%40b", "a:***@host/d%40b"),
        ("postgresql://host/db?user=a&password=secret&secret=1", "host/db"),
        ("postgresql:///db?host=/run/a@b&password=a@secret", "/db?host=%2Frun%2Fa%40b"),
    ],
)
def test_no_part_of_a_password_is_in_the_name(url: str, name: str) -> None:
    database = Database(url)
    assert database.name == f"postgresql+asyncpg://{name}"
    assert "secret" not in database.identity


def test_a_file_may_have_an_at(tmp_path: Path) -> None:
    file = tmp_path / "a:b@c" / "d@e.db"
    assert Database(f"sqlite:///{file}").url.database == str(file)
