"""Whatever the command line of keys and credits is given: one line and an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from server.accounts.db import Database
from server.accounts.key_text import is_well_formed
from server.accounts.pricing import MAX_CREDITS, parse_credits
from server.cli.main import app
from server.errors import OutcomeUnknown

runner = CliRunner()

NUMBERS = [
    "1e400", "1e999999999", "-1e999999999", "inf", "-inf", "nan", "sNaN", "-1", str(10**30), "",
    " ", "1\n2", "0x10", "٣x", "a\udcff", "9" * 5000,
]  # fmt: skip
NAMES = ["", " ", "a\nb", "a\udcff", "\u202e", "x" * 101, "x" * 100_000, "\x1b[31m"]


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", f"sqlite:///{tmp_path}/a.db")
    return tmp_path / "a.db"


def ask(*arguments: str) -> Result:
    return runner.invoke(app, [*arguments])


def assert_one_line(result: Result, *statuses: int) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in statuses, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert len(result.stderr) < 500
    assert "secret" not in result.stderr


@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.parametrize(
    "command",
    [
        ["credits", "add", "alice", "--"],
        ["keys", "create", "bob", "--credits"],
        ["keys", "create", "bob", "--concurrency"],
        ["keys", "create", "bob", "--rate"],
        ["keys", "rotate", "alice", "--grace"],
    ],
    ids=" ".join,
)
def test_numbers(command: list[str], text: str, file: Path) -> None:
    assert_one_line(ask(*command, text), 2)
    assert not file.exists()


@pytest.mark.parametrize("text", ["1e-999999999", "0.05", "0.10000000000000000000000000000000001"])
def test_credits_between_two_steps(text: str) -> None:
    assert_one_line(ask("credits", "add", "alice", text), 2)


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    for command in (["keys", "create"], ["keys", "revoke"], ["keys", "rotate"]):
        assert_one_line(ask(*command, name), 2)
    assert_one_line(ask("credits", "add", name, "1"), 2)


def test_names_that_are_right_but_of_another_key_or_of_none() -> None:
    assert ask("keys", "create", "alice").exit_code == 0
    for command in (["keys", "create", "alice"], ["keys", "revoke", "bob"]):
        assert_one_line(ask(*command), 2)
    assert_one_line(ask("keys", "rotate", "bob"), 2)
    assert_one_line(ask("credits", "add", "bob", "1"), 2)


def test_a_rotation_says_how_long_the_old_key_stays_valid() -> None:
    assert ask("keys", "create", "alice").exit_code == 0
    for grace, hours in ((), "24"), (("--grace", "0.5"), "0.5"):
        rotated = ask("keys", "rotate", "alice", *grace)
        assert is_well_formed(rotated.stdout.removesuffix("\n"))
        assert rotated.stderr == (
            f"alice: older keys that are valid stay so for {hours} hours at most; "
            "--grace 0 ends them at once\n"
        )
    ended = ask("keys", "rotate", "alice", "--grace", "0")
    assert is_well_formed(ended.stdout.removesuffix("\n"))
    assert ended.stderr == "alice: no older key is valid\n"
    states = [line.split()[2] for line in ask("keys", "list").stdout.splitlines()[1:]]
    assert states == ["expired", "expired", "expired", "valid"]


@settings(suppress_health_check=list(HealthCheck))
@given(st.text() | st.from_regex(r"\A[-+]?[0-9]{1,40}([.][0-9]{0,40})?([eE][-+]?[0-9]{1,12})?\Z"))
def test_credits_are_a_number_or_named_in_one_line(text: str) -> None:
    try:
        tenths = parse_credits(text)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 300
    else:
        assert 0 <= tenths <= MAX_CREDITS


@pytest.mark.parametrize(
    ("text", "tenths"),
    [("10", 100), ("10.4", 104), ("10.40", 104), (" 2.5 ", 25), ("1e2", 1000), ("-0", 0),
     ("0.1", 1), ("100000000000", MAX_CREDITS)],
)  # fmt: skip
def test_credits(text: str, tenths: int) -> None:
    assert parse_credits(text) == tenths


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysql://a:secret@b/c",
        "postgresql://u:secret@h:abc/x",
        "postgresql://u:secret@127.0.0.1:99999/x",
        "postgresql://u:secret@127.0.0.1:1/x",
        "postgresql://u:secret@127.0.0.1:1/x?bogus=1",
        "postgresql://u:secret@127.0.0.1:1/x?sslmode=bogus",
        "postgresql://u:secret@[::1/x",
        "sqlite://",
        "sqlite:////proc/no/such.db",
        "sqlite:////dev",
        "sqlite:////dev/null/a.db",
        "sqlite:///{folder}/a.db?timeout=abc",
        "sqlite:///{folder}/text.db",
        "sqlite:///{folder}/loop",
    ],
)
@pytest.mark.parametrize(
    "command",
    [["keys", "list"], ["keys", "create", "alice"], ["credits", "audit"]],
    ids=" ".join,
)
def test_databases(
    command: list[str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.db").write_text("no database, but a text of more than a hundred bytes " * 3)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", url.replace("{folder}", str(tmp_path)))
    assert_one_line(ask(*command), 1)


@pytest.mark.parametrize("folder", ["/proc/no", "/dev/null/data", "~no-such-user/data"])
def test_data_folders(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMG2IMG_DATABASE_URL")
    monkeypatch.setenv("IMG2IMG_DATA_DIR", folder)
    for command in (["keys", "create", "alice"], ["keys", "list"], ["credits", "audit"]):
        assert_one_line(ask(*command), 1, 2)


def test_what_the_database_refuses(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", database_url)
    assert ask("keys", "create", "alice").exit_code == 0
    if "postgresql" in database_url:
        assert_one_line(ask("keys", "create", "bob", "--rate", f"1{' ' * 200}/minute"), 1)
    for _ in range(2):
        assert ask("credits", "add", "alice", "100000000000").exit_code == 0
    assert ask("credits", "audit").output == "the ledger agrees with itself\n"


def test_a_key_and_its_credits_are_made_together(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMG2IMG_DATABASE_URL", database_url)

    async def away(*_: object) -> None:
        raise OSError("the connection was lost")

    with monkeypatch.context() as broken:
        broken.setattr("server.accounts.api_keys.move", away)
        assert_one_line(ask("keys", "create", "alice", "--credits", "5"), 1)
    assert ask("keys", "create", "alice", "--credits", "5").exit_code == 0
    assert " 5.0 " in ask("keys", "list").output
    assert ask("credits", "audit").exit_code == 0


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["credits", "add", "alice", "5"], "see by `img2img keys list` whether they are there"),
        (["keys", "create", "bob"], "if `img2img keys list` has it, `img2img keys rotate`"),
        (["keys", "rotate", "alice"], "do it again"),
    ],
    ids=" ".join,
)
def test_what_may_have_been_done_is_not_told_as_not_done(
    command: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask("keys", "create", "alice").exit_code == 0
    write = Database.write

    async def unanswered(self: Database, work: Any, **options: Any) -> Any:
        result = await write(self, work, **options)
        if options:  # The schema's.
            return result
        raise OutcomeUnknown from TimeoutError("no answer within 5 s")

    monkeypatch.setattr(Database, "write", unanswered)
    result = ask(*command)
    assert_one_line(result, 1)
    assert "it is not known whether this was done (no answer within 5 s)" in result.stderr
    assert told in result.stderr
