"""The database of keys and credits: SQLite (one file, WAL) or PostgreSQL, and transactions.

A transaction runs to its end even if its caller is cancelled meanwhile, so that it has either
happened or not. While the database cannot be reached every one raises `DatabaseAway`; the next one
tries anew, so nothing needs a restart. Nobody waits for one longer than its seconds, the queue
before it included; what has not begun by then never does, so that a queue ends with its callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.accounts.tables import keys
from server.errors import DatabaseAway, DatabaseUnusable, OutcomeUnknown
from server.key_marker import keys_were_made, marker_file, missing_message, sqlite_identity

logger = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

MIGRATIONS = Path(__file__).parent / "migrations"
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 10.0
OPERATION_SECONDS = 5.0
"""Seconds for which anybody waits for a whole transaction, where nothing else is said."""
_SWITCH_RETRY_SECONDS = 0.02
_NO_SUCH_DATABASE = "3D000"
_SHOWN_OPTIONS = ("host", "port", "ssl")
_STRAY_AT = re.compile(r"postgres[^:]*://(?>(?:[^:/]*(?::[^@]*)?@)?)[^?]*@")
"""An @ beyond the one after user and password: what SQLAlchemy takes for the host, or for the
database, may be a part of the password then."""
_MIGRATION_LOCK = 0x1312_1312
"""Number of the PostgreSQL advisory lock that one server holds while it upgrades the schema."""


class Database:
    """Connections to one database. Not for several event loops at once."""

    def __init__(self, url: str, *, busy_seconds: float = 4.0) -> None:
        """`busy_seconds`: how long SQLite waits for another process's write.

        Raises DatabaseUnusable for a URL of another kind of database.
        """
        self.url = _driver_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._busy_seconds = busy_seconds
        try:
            self._engine = self._make_engine()
        except (TypeError, ValueError) as error:
            raise _unusable_url(error) from None
        self._reader = self._engine.execution_options(read_only=True)
        # SQLite has one writer; a queue here is fairer than its busy loop.
        self._turn = asyncio.Lock()
        self._file: tuple[int, int] | None = None  # what SQLite has open: device and inode
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def name(self) -> str:
        """The URL without its password, which may also be one of the options."""
        shown = {name: value for name, value in self.url.query.items() if name in _SHOWN_OPTIONS}
        return self.url.set(query=shown).render_as_string(hide_password=True)

    @property
    def identity(self) -> str:
        """The name that tells this database from others, whoever connects to it: no user, no
        password."""
        if self.is_sqlite:
            return sqlite_identity(Path(str(self.url.database)))
        host = self.url.host or self.url.query.get("host") or "localhost"
        return f"postgresql://{host}:{self.url.port or 5432}/{self.url.database or ''}"

    async def holds_keys(self) -> bool:
        """Return whether there is any key, valid or not; makes nothing. Raises DatabaseAway."""

        def look(connection: Connection) -> bool:
            if not sa.inspect(connection).has_table(keys.name):
                return False
            return connection.execute(sa.select(keys.c.id).limit(1)).first() is not None

        if self.is_sqlite and not os.path.lexists(str(self.url.database)):
            return False
        try:
            return await self.read(lambda connection: connection.run_sync(look))
        except DatabaseAway as error:
            if _sqlstate(error) == _NO_SUCH_DATABASE:
                return False
            raise

    async def write(self, work: Work[T], *, seconds: float | None = OPERATION_SECONDS) -> T:
        """Run `work` in a transaction of its own, and commit.

        Raises DatabaseAway; OutcomeUnknown where it may have happened all the same.
        """
        run = self._in_turn if self.is_sqlite else self._transaction
        return await self._shielded(run, self._engine, work, seconds)

    async def read(self, work: Work[T], *, seconds: float | None = OPERATION_SECONDS) -> T:
        """Run `work` in a transaction that changes nothing. Raises DatabaseAway."""
        return await self._shielded(self._transaction, self._reader, work, seconds)

    async def migrate(self) -> None:
        """Bring the schema to this server's revision. Raises DatabaseAway or DatabaseUnusable."""
        if self.is_sqlite:
            await asyncio.to_thread(self._prepare_file)
        await self.write(lambda connection: connection.run_sync(_upgrade), seconds=None)

    async def close(self) -> None:
        """Wait for what runs, and close every connection."""
        while self._running:
            await asyncio.wait(self._running)
        await self._engine.dispose()

    async def _shielded(
        self,
        run: Callable[[AsyncEngine, Work[T], float], Awaitable[T]],
        engine: AsyncEngine,
        work: Work[T],
        seconds: float | None,
    ) -> T:
        until = math.inf if seconds is None else time.monotonic() + seconds
        began = False

        async def begun(connection: AsyncConnection) -> T:
            nonlocal began
            began = True
            return await work(connection)

        task = asyncio.ensure_future(run(engine, begun, until))
        self._running.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait((task,), timeout=seconds)
        if not done:
            late = TimeoutError(f"no answer within {seconds:g} s")
            _log_away(late)
            # What has not begun by now never will.
            unknown = began and engine is self._engine
            raise (OutcomeUnknown if unknown else DatabaseAway) from late
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # Seen, even where the caller that would have seen it has gone.

    async def _in_turn(self, engine: AsyncEngine, work: Work[T], until: float) -> T:
        async with self._turn:
            return await self._transaction(engine, work, until)

    async def _transaction(self, engine: AsyncEngine, work: Work[T], until: float) -> T:
        connected = worked = False
        try:
            _check_time(until)
            self._check_file()
            async with engine.begin() as connection:
                connected = True
                _check_time(until)
                self._note_file()
                result = await work(connection)
                worked = engine is self._engine
            return result
        except (TypeError, ValueError, OverflowError) as error:
            if connected:
                raise
            # The drivers check the URL's options, and the port, no sooner.
            raise _unusable_url(error) from None
        except (exc.IntegrityError, exc.DataError, exc.ProgrammingError):
            raise
        except (exc.DBAPIError, exc.TimeoutError, OSError, TimeoutError) as error:
            if _is_of_data(error):
                raise
            cause = error.orig if isinstance(error, exc.DBAPIError) else error
            _log_away(cause)
            # Once all is said the COMMIT alone can have failed, and nothing tells which way.
            raise (OutcomeUnknown if worked else DatabaseAway) from error

    def _check_file(self) -> None:
        """Raise OSError where the file that is open is not, or no longer, the one of that name.

        SQLite would go on with it: what is charged there would be lost at the next start, and a
        new connection would open another file. Opening that one here is no way out, since closing
        the old connections removes side files by their name.
        """
        if self._file is None:
            return
        path = str(self.url.database)
        if _file_identity(path) != self._file:
            raise OSError(f"{path} was replaced while it was open: restart the server")

    def _note_file(self) -> None:
        if self.is_sqlite and self._file is None:
            with contextlib.suppress(FileNotFoundError):  # Made by the first statement.
                self._file = _file_identity(str(self.url.database))

    def _make_engine(self) -> AsyncEngine:
        # hide_parameters: an error's text must not hold digests or answers.
        if not self.is_sqlite:
            return create_async_engine(
                self.url,
                hide_parameters=True,
                pool_pre_ping=True,
                pool_size=8,
                max_overflow=8,
                pool_timeout=STATEMENT_SECONDS,
                connect_args={"timeout": CONNECT_SECONDS, "command_timeout": STATEMENT_SECONDS},
            )
        engine = create_async_engine(
            self.url,
            hide_parameters=True,
            pool_size=4,
            max_overflow=4,
            connect_args={"timeout": self._busy_seconds, "async_creator_fn": _connect_sqlite},
        )
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine

    def _prepare_file(self) -> None:
        """Create the file, its owner's alone (so are SQLite's side files), and switch it to WAL."""
        path = Path(str(self.url.database))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Only where there is none: closing a file drops the locks this process has on it.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as connection:
                self._switch_to_wal(connection)
        except (OSError, sqlite3.Error) as error:
            _log_away(error)
            raise DatabaseAway from error

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        """The file keeps the mode, so that later connections find it.

        Tried in a loop: of two that switch together SQLite refuses one at once, timeout or not.
        """
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(_SWITCH_RETRY_SECONDS)


def _check_time(until: float) -> None:
    if time.monotonic() >= until:
        raise TimeoutError("too late to begin")


def _file_identity(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_dev, found.st_ino


async def require_known(database: Database, data_dir: Path) -> bool:
    """Return whether the database holds keys. Raises DatabaseAway; and DatabaseUnusable where it
    holds none though some were made."""
    has_keys = await database.holds_keys()
    try:
        missing = not has_keys and keys_were_made(data_dir, database.identity)
    except OSError as error:
        raise DatabaseUnusable(
            f"{marker_file(data_dir)} cannot be read: {error.strerror}"
        ) from None
    if missing:
        raise DatabaseUnusable(missing_message(data_dir, database.identity))
    return has_keys


def first_line(error: BaseException | None) -> str:
    """An error of a database in one line: the driver's words, not SQLAlchemy's around them."""
    cause = error.orig if isinstance(error, exc.DBAPIError) else error
    cause = getattr(cause, "__cause__", None) or cause  # asyncpg's own, inside its adapter's.
    return (str(cause).splitlines() or [type(cause).__name__])[0][:300]


def _sqlstate(error: DatabaseAway) -> str | None:
    cause = error.__cause__
    return getattr(cause.orig, "sqlstate", None) if isinstance(cause, exc.DBAPIError) else None


def _is_of_data(error: Exception) -> bool:
    """Return whether PostgreSQL refuses what it was given, not whether it can be reached: a value
    (SQLSTATE class 22) or a statement (42). asyncpg's adapter does not tell these apart."""
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, exc.DBAPIError) else None
    return (state or "")[:2] in ("22", "42")


def _log_away(cause: BaseException | None) -> None:
    logger.warning(
        "the database is away",
        extra={"fields": {"error": type(cause).__name__, "reason": str(cause)[:200]}},
    )


def _unusable_url(error: Exception) -> DatabaseUnusable:
    return DatabaseUnusable(f"the database's URL cannot be used: {first_line(error)}")


def _driver_url(text: str) -> URL:
    if _STRAY_AT.match(text):
        raise DatabaseUnusable(
            "the database's URL has an @ too many: "
            "in a user, a password or a database's name write %40"
        )
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        raise DatabaseUnusable("the database's URL cannot be read") from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise DatabaseUnusable("an SQLite database has to be a file: sqlite:///path/to/file.db")
        return url.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        # libpq's name of the option; asyncpg calls it ssl.
        mode = url.query.get("sslmode")
        if mode is not None:
            url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
        return url.set(drivername="postgresql+asyncpg")
    raise DatabaseUnusable(f"{backend} is not supported: give a sqlite: or postgresql: URL")


async def _connect_sqlite(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True
    try:
        return await connection
    except BaseException:
        # It tells the loop of its end, and if that is closed by then, the terminal of a traceback.
        await asyncio.to_thread(connection._thread.join)
        raise


def _set_up_sqlite(connection: Any, _: object) -> None:
    # The driver's own BEGIN would come too late, and never IMMEDIATE.
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL: a settled credit survives a power cut, not only a crash.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that starts as a reader may not be able to become a writer.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings for the revisions that ship, on this connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    from alembic import command

    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    config = alembic_config(connection)
    revisions = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    newest = revisions.get_current_head()
    if current == newest:
        return
    known = {revision.revision for revision in revisions.walk_revisions()}
    if current is not None and current not in known:
        raise DatabaseUnusable(
            f"the database's schema, revision {current}, is newer than this server; upgrade it"
        )
    command.upgrade(config, "head")
    logger.info("schema upgraded", extra={"fields": {"from": current or "none", "to": newest}})
