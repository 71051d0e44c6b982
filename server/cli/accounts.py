"""`img2img keys` and `img2img credits`: they work on the database, with the server up or not."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from server.accounts.pricing import credits_text, parse_credits, price_table
from server.cli.shared import FAILURE, USAGE_ERROR, read_settings, stop
from server.key_marker import marker_file, note_keys_made
from server.rates import LimitsProblem, parse_rate

if TYPE_CHECKING:
    from server.accounts.db import Database

T = TypeVar("T")
keys_app = typer.Typer(help="API keys: create, list, revoke, rotate, backup.", no_args_is_help=True)
credits_app = typer.Typer(help="Credits of keys: add, audit, prices.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="The key's name.")]


def _credits(text: str) -> int:
    try:
        return parse_credits(text)
    except ValueError as error:
        raise stop(str(error), USAGE_ERROR) from None


def _rate(text: str) -> str:
    try:
        parse_rate(text)
    except LimitsProblem as error:
        raise stop(f"--rate: {error}", USAGE_ERROR) from None
    return text.strip()


def _concurrency(text: str) -> int:
    with suppress(ValueError):
        if 1 <= (number := int(text)) <= MAX_CONCURRENCY:
            return number
    rule = f"is not a whole number from 1 to {MAX_CONCURRENCY}"
    raise stop(f"--concurrency: {text[:40]!r} {rule}", USAGE_ERROR)


def _hours(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (hours := float(text)) <= MAX_GRACE_HOURS:
            return hours
    rule = f"is not a number of hours from 0 to {MAX_GRACE_HOURS}"
    raise stop(f"--grace: {text[:40]!r} {rule}", USAGE_ERROR)


CREDITS_METAVAR = "CREDITS"
MAX_CONCURRENCY = 1_000_000
MAX_GRACE_HOURS = 10 * 366 * 24


def _run(
    work: Callable[[Database], Awaitable[T]],
    *,
    make: bool = False,
    migrate: bool = True,
    unsure: str = "do it again",
) -> T:
    """Do it on the settings' database; exits with 1 if it cannot be done, with 2 for a name that
    is wrong.

    With `make` the work makes a key, which is noted in the data folder. Without `migrate` the
    schema stays as it is. `unsure` says what to do where the database did not say whether it was
    done.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from server.accounts.api_keys import KeyProblem
    from server.accounts.db import Database, first_line, require_known
    from server.errors import DatabaseAway, DatabaseUnusable, OutcomeUnknown

    settings = read_settings()
    if not make and not settings.has_database:
        raise stop(f"there is no key yet: {settings.accounts_file} does not exist", FAILURE)

    async def main() -> T:
        database = Database(settings.accounts_url)
        try:
            await require_known(database, settings.data_dir)
            if migrate:
                await database.migrate()
            result = await work(database)
            if make:
                _note_keys_made(settings.data_dir, database.identity)
            return result
        finally:
            await database.close()

    try:
        with _quiet():
            return asyncio.run(main())
    except KeyProblem as error:
        raise stop(str(error), USAGE_ERROR) from None
    except DatabaseUnusable as error:
        raise stop(str(error), FAILURE) from None
    except OutcomeUnknown as error:
        reason = first_line(error.__cause__)
        raise stop(f"it is not known whether this was done ({reason}): {unsure}", FAILURE) from None
    except DatabaseAway as error:
        reason = first_line(error.__cause__)
        raise stop(f"the database cannot be reached: {reason}", FAILURE) from None
    except SQLAlchemyError as error:
        raise stop(f"the database cannot be used: {first_line(error)}", FAILURE) from None


def _note_keys_made(folder: Path, identity: str) -> None:
    try:
        note_keys_made(folder, identity)
    except OSError as error:
        # The key is made: it must be printed all the same.
        reason = f"{marker_file(folder)} cannot be written ({error.strerror})"
        typer.echo(f"{reason}: should this database go missing, no server will notice", err=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """The database's warnings are for a server's log; here the last line says it all."""
    log = logging.getLogger("server.accounts.db")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@keys_app.command("create")
def create(
    name: NameArgument,
    credits: Annotated[
        Any, typer.Option(parser=_credits, metavar=CREDITS_METAVAR, help="Credits to begin with.")
    ] = "0",
    rate: Annotated[
        Any, typer.Option(parser=_rate, metavar="RATE", help="Its own rate, such as 30/minute.")
    ] = None,
    concurrency: Annotated[
        Any,
        typer.Option(
            parser=_concurrency, metavar="N", help="Requests that it may run at the same time."
        ),
    ] = None,
) -> None:
    """Make a key and print it. It is shown this once."""
    from server.accounts.api_keys import KeyStore

    async def work(database: Database) -> str:
        _, key = await KeyStore(database).create(
            name, rate=rate, concurrency=concurrency, tenths=int(credits)
        )
        return key

    unsure = "if `img2img keys list` has it, `img2img keys rotate` prints a key for it"
    typer.echo(_run(work, make=True, unsure=unsure))


@keys_app.command("list")
def list_keys() -> None:
    """Print every key's name, state, credits and limits; never the key."""
    from server.accounts.api_keys import KeyStore
    from server.accounts.clock import now_millis

    records = _run(lambda database: KeyStore(database).list())
    rows = [("name", "id", "state", "credits", "rate", "concurrency", "created", "until")]
    for record in records:
        account = record.account
        rows.append(
            (
                account.name,
                record.lookup[:8],
                record.state(now_millis()),
                credits_text(record.available + record.held),
                account.rate or "-",
                str(account.concurrency or "-"),
                _time(record.created_at),
                _time(record.revoked_at or record.expires_at),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        typer.echo("  ".join(line).rstrip())


@keys_app.command("revoke")
def revoke(name: NameArgument) -> None:
    """Make the key, and what it was rotated from, invalid at once."""
    from server.accounts.api_keys import KeyStore

    count = _run(lambda database: KeyStore(database).revoke(name))
    typer.echo(f"{name}: {count} revoked")


@keys_app.command("rotate")
def rotate(
    name: NameArgument,
    grace: Annotated[
        Any,
        typer.Option(
            parser=_hours, metavar="HOURS", help="Hours for which the old key stays valid."
        ),
    ] = "24",
) -> None:
    """Make a new key for the same credits and limits, and print it. It is shown this once."""
    from server.accounts.api_keys import KeyStore

    typer.echo(_run(lambda database: KeyStore(database).rotate(name, float(grace) * 3600)))
    told = "no older key is valid"
    if float(grace):
        told = f"older keys that are valid stay so for {float(grace):g} hours at most"
        told += "; --grace 0 ends them at once"
    typer.echo(f"{name}: {told}", err=True)


@keys_app.command("backup")
def backup(
    name: Annotated[
        str, typer.Argument(metavar="FILE", help="The file to write; it is not there yet.")
    ],
) -> None:
    """Write an SQLite database with all keys and credits to one file, with the server up or not.

    It is not brought up to date, so this can be done before an upgrade and after it.
    """
    from server.accounts.backup import back_up

    file = Path(name)
    if name.endswith(("/", os.sep)):
        raise stop(f"{name!r} is a folder; name a file in it", USAGE_ERROR)
    if os.path.lexists(file):
        raise stop(f"{str(file)!r} is there already; name another file", USAGE_ERROR)

    async def work(database: Database) -> int:
        if not database.is_sqlite:
            said = "keys and credits are in PostgreSQL, whose own pg_dump backs them up"
            raise stop(said, USAGE_ERROR)
        try:
            return back_up(Path(str(database.url.database)), file)
        except (OSError, ValueError, sqlite3.Error) as error:
            raise stop(f"the backup was not made: {error}", FAILURE) from None

    count = _run(work, migrate=False)
    typer.echo(f"{file}: {count} key{'' if count == 1 else 's'}")


@credits_app.command("add")
def add(
    name: NameArgument,
    amount: Annotated[
        Any, typer.Argument(parser=_credits, metavar=CREDITS_METAVAR, help="Credits, such as 2.5.")
    ],
) -> None:
    """Give credits to a key."""
    from server.accounts.api_keys import KeyStore
    from server.accounts.ledger import Ledger

    async def work(database: Database) -> int:
        account = await KeyStore(database).account(name)
        return (await Ledger(database).grant(account.id, int(amount))).available

    unsure = "see by `img2img keys list` whether they are there before you add them again"
    typer.echo(f"{name}: {credits_text(_run(work, unsure=unsure))}")


@credits_app.command("audit")
def audit_ledger() -> None:
    """Check that balances, entries and reservations agree. Exits with 1 if they do not."""
    from server.accounts.audit import audit

    problems = _run(audit)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo("the ledger agrees with itself")


@credits_app.command("prices")
def prices() -> None:
    """Print what pictures cost, by size and steps."""
    typer.echo(price_table())


def _time(millis: int | None) -> str:
    if millis is None:
        return "-"
    moment = datetime.datetime.fromtimestamp(millis / 1000, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M")
