"""`img2img keys backup`: all that was committed, in one file, whatever goes on meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from click.testing import Result
from typer.testing import CliRunner

from scripts.services.throwaway_postgres import Postgres
from server.accounts.db import Database, alembic_config
from server.cli.main import app
from tests.server.databases import new_postgres_database

runner = CliRunner()


def ask(*arguments: str) -> Result:
    return runner.invoke(app, [*arguments])


def use(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", f"sqlite:///{file}")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings' database, with the key alice, in a folder whose name needs care in a URL."""
    (tmp_path / "a 100% b#c").mkdir()
    use(tmp_path / "a 100% b#c" / "accounts.db", monkeypatch)
    monkeypatch.setenv("IMG2IMG_DATA_DIR", str(tmp_path / "data"))
    assert ask("keys", "create", "alice", "--credits", "5").exit_code == 0
    return tmp_path / "a 100% b#c" / "accounts.db"


@pytest.fixture
def open_file(file: Path) -> Iterator[Path]:
    """The same while a server has it open: what is written now stays in the -wal."""
    with closing(sqlite3.connect(file)) as server:
        server.execute("SELECT * FROM keys").fetchall()
        yield file


def test_it_has_what_is_in_the_wal_alone(
    open_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask("keys", "create", "bob", "--credits", "7").exit_code == 0
    copied = tmp_path / "copied.db"
    copied.write_bytes(open_file.read_bytes())
    made = ask("keys", "backup", str(tmp_path / "made.db"))
    assert made.exit_code == 0, made.output
    assert made.output == f"{tmp_path / 'made.db'}: 2 keys\n"
    listed = {}
    for name in ("copied.db", "made.db"):
        use(tmp_path / name, monkeypatch)
        listed[name] = ask("keys", "list").output
        assert ask("credits", "audit").exit_code == 0
    assert "bob" not in listed["copied.db"], "the -wal holds nothing, and this test shows nothing"
    assert "alice" in listed["made.db"]
    assert " 7.0 " in listed["made.db"]


def test_it_is_one_file_of_its_owner_alone(open_file: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    made = tmp_path / "new" / "made.db"
    assert ask("keys", "backup", str(made)).exit_code == 0
    with closing(sqlite3.connect(made)) as reader:
        reader.execute("SELECT * FROM keys").fetchall()
        assert list(made.parent.iterdir()) == [made]
    assert stat.S_IMODE(made.stat().st_mode) == 0o600


def test_no_file_is_written_over(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    for there in (other, file):
        before = there.read_bytes()
        result = ask("keys", "backup", str(there))
        assert result.exit_code == 2
        assert result.stderr == f"{str(there)!r} is there already; name another file\n"
        assert there.read_bytes() == before


def test_a_folder_is_no_file_to_write(file: Path, tmp_path: Path) -> None:
    result = ask("keys", "backup", f"{tmp_path}/new/")
    assert result.exit_code == 2
    assert result.stderr == f"'{tmp_path}/new/' is a folder; name a file in it\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["no/such/folder/a.db", "", "x" * 300])
def test_a_file_that_cannot_be_written_is_told_in_a_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = ask("keys", "backup", name)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert list((tmp_path / "here").iterdir()) == []


def test_the_schema_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def make_old() -> None:
        database = Database(f"sqlite:///{tmp_path}/old.db")
        database._prepare_file()
        await database.write(
            lambda c: c.run_sync(lambda inner: command.upgrade(alembic_config(inner), "0003"))
        )
        await database.close()

    asyncio.run(make_old())
    use(tmp_path / "old.db", monkeypatch)
    assert ask("keys", "backup", str(tmp_path / "made.db")).output.endswith("made.db: 0 keys\n")
    for name in ("old.db", "made.db"):
        with closing(sqlite3.connect(tmp_path / name)) as database:
            found = database.execute("SELECT version_num FROM alembic_version").fetchall()
        assert found == [("0003",)]


def test_a_database_that_is_missing_gives_no_empty_backup(file: Path, tmp_path: Path) -> None:
    file.unlink()
    result = ask("keys", "backup", str(tmp_path / "made.db"))
    assert result.exit_code == 1
    assert "is missing or empty" in result.stderr
    assert not (tmp_path / "made.db").exists()
    assert not file.exists()


def test_for_postgresql_it_says_whose_matter_that_is(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_postgres_database(postgres) as url:
        monkeypatch.setenv("IMG2IMG_DATABASE_URL", url)
        assert ask("keys", "create", "alice").exit_code == 0
        result = ask("keys", "backup", str(tmp_path / "made.db"))
    assert result.exit_code == 2
    assert "pg_dump" in result.stderr
    assert not (tmp_path / "made.db").exists()
