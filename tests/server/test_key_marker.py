"""A database that is missing is told from one that is new."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scripts.services.throwaway_postgres import Postgres
from server.accounts.db import Database
from server.accounts.service import Accounts
from server.cli.main import app
from server.key_marker import keys_were_made, marker_file, note_keys_made
from server.settings import Settings
from tests.server.databases import new_postgres_database
from tests.server.server_process import running_server
from tests.server.team import Team

pytestmark = pytest.mark.process

STUB = "tests.server.stub_server"
runner = CliRunner()


def create(name: str = "alice") -> None:
    result = runner.invoke(app, ["keys", "create", name])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""


def test_the_list(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert not keys_were_made(folder, "sqlite:////a")
    for identity in ("sqlite:////a", "sqlite:////b\udcff", "sqlite:////a"):
        note_keys_made(folder, identity)
        assert keys_were_made(folder, identity)
    assert not keys_were_made(folder, "sqlite:////")
    assert len(marker_file(folder).read_bytes().splitlines()) == 3
    assert not keys_were_made(marker_file(folder), "sqlite:////a")


def test_a_list_that_cannot_be_read_is_no_open_door(tmp_path: Path) -> None:
    marker_file(tmp_path).mkdir()
    assert Settings(data_dir=tmp_path).asks_for_key
    assert "databases-with-keys cannot be read: Is a directory" in failure(data_dir=tmp_path)


def failure(**settings: object) -> str:
    """Why a server with these settings does not start; blank if it does."""

    async def main() -> str:
        accounts = Accounts(Settings(**settings))  # type: ignore[arg-type]
        await accounts.start()
        await accounts.stop()
        return str(accounts.failure or "")

    return asyncio.run(main())


def test_the_file_of_the_data_folder_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMG2IMG_DATA_DIR", str(tmp_path))
    create()
    file, away = tmp_path / "accounts.db", tmp_path / "away"
    file.rename(away)
    assert Settings().asks_for_key  # not an open server
    assert not Settings(data_dir=tmp_path / "new").asks_for_key
    with running_server(STUB, tmp_path) as server:
        assert server.exit_status() == 1
        (line,) = (line for line in server.log.splitlines() if "level=" not in line)
        assert f"the database sqlite:///{file}, in which keys were made, is missing" in line
        assert f"remove its line from {tmp_path / 'databases-with-keys'}" in line
    assert not file.exists()
    away.rename(file)
    assert failure() == ""


def test_a_file_with_a_name_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, away = tmp_path / "elsewhere.db", tmp_path / "away"
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", f"sqlite:///{file}")
    create()
    create("bob")
    file.rename(away)
    for command in (["keys", "list"], ["keys", "create", "eve"], ["credits", "audit"]):
        result = runner.invoke(app, command)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert "is missing or empty" in result.stderr
    assert "is missing or empty" in failure()
    assert not file.exists()
    file.touch()  # as good as missing
    assert "is missing or empty" in failure()
    away.rename(file)
    assert failure() == ""


def test_the_doctor_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", f"sqlite:///{tmp_path}/a.db")
    create()
    (tmp_path / "a.db").unlink()
    output = runner.invoke(app, ["doctor", "--model", str(tmp_path / "none")]).output
    assert f"problem    the database sqlite:///{tmp_path}/a.db, in which keys" in output


def test_a_database_that_is_new_is_a_loud_warning(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note_keys_made(tmp_path, "sqlite:////another")
    assert failure(database_url=database_url, data_dir=tmp_path) == ""
    (warning,) = (r for r in caplog.records if "THE DATABASE HAS NO KEY" in r.message)
    assert warning.levelname == "WARNING"
    Team(database_url).make_key()
    caplog.clear()
    assert failure(database_url=database_url, data_dir=tmp_path) == ""
    assert "NO KEY" not in caplog.text


def test_a_schema_that_is_missing(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMG2IMG_DATA_DIR", str(tmp_path))
    with new_postgres_database(postgres) as url:
        url = url.replace("img2img@", "img2img:secret@")
        monkeypatch.setenv("IMG2IMG_DATABASE_URL", url)
        create()
        assert "secret" not in marker_file(tmp_path).read_text()
        name = Database(url).url.database
        postgres.run_sql(f"DROP DATABASE {name} WITH (FORCE)")
        assert "is missing or empty" in failure()
        postgres.run_sql(f"CREATE DATABASE {name}")
        why = failure()
        assert "is missing or empty" in why
        assert "secret" not in why
        marker_file(tmp_path).unlink()
        assert failure() == ""


def test_a_server_ends_when_the_database_comes_back_empty(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.accounts.service.RETRY_SECONDS", 0.1)

    async def main(url: str) -> None:
        note_keys_made(tmp_path, Database(url).identity)
        accounts = Accounts(Settings(database_url=url, data_dir=tmp_path))
        postgres.stop()
        ended = asyncio.Event()
        await accounts.start(ended.set)
        assert accounts.failure is None
        postgres.start()
        await asyncio.wait_for(ended.wait(), 30)
        assert "is missing or empty" in str(accounts.failure)
        await accounts.stop()

    with new_postgres_database(postgres) as url:
        asyncio.run(main(url))


def test_a_list_that_cannot_be_written_costs_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstacle = tmp_path / "file"
    obstacle.touch()
    monkeypatch.setenv("IMG2IMG_DATA_DIR", str(obstacle))
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", f"sqlite:///{tmp_path}/a.db")
    result = runner.invoke(app, ["keys", "create", "alice"])
    assert result.exit_code == 0
    assert result.stdout.startswith("i2i_")
    assert len(result.stderr.splitlines()) == 1
    assert "cannot be written" in result.stderr
    assert stat.S_ISREG(obstacle.stat().st_mode)
