"""The presence of the servers on one database, told without a clock.

Each has a name of its own and a row in `servers`, and holds a lock on a file of its own, which the
kernel drops when the process ends, however it ends. Of a server whose file is not here (it runs
elsewhere) the row's beat is watched: it is counted up as long as the server runs, and one that has
stood still for `SILENT_LOOKS` looks in a row is dead. Neither asks what time it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.accounts.db import Database
from server.accounts.tables import servers
from server.errors import DatabaseAway

if sys.platform != "win32":
    import fcntl

SILENT_LOOKS = 4

logger = logging.getLogger(__name__)


class Presence:
    """One process among the servers of a database."""

    def __init__(self, database: Database, folder: Path) -> None:
        """`folder`: for the lock files, one for all servers of this machine on this database."""
        self.name = f"{socket.gethostname()[:200]}:{os.getpid()}:{uuid.uuid4().hex}"
        self._database = database
        self._folder = folder
        self._lock: int | None = None
        # The last beat seen of each other server, and in how many looks it has stood still.
        self._seen: dict[str, tuple[int, int]] = {}

    async def enter(self) -> None:
        """Be known as alive; may be repeated. Raises DatabaseAway."""
        # The lock first: who is in the table and can be locked is taken for dead.
        await asyncio.to_thread(self._take_lock)
        await self.beat()

    async def beat(self) -> None:
        """Show that this server runs: once between two looks of the others. Raises DatabaseAway."""

        async def work(connection: AsyncConnection) -> None:
            mine = servers.c.name == self.name
            counted = servers.update().where(mine).values(beat=servers.c.beat + 1)
            if not (await connection.execute(counted)).rowcount:
                await connection.execute(servers.insert().values(name=self.name, beat=0))

        await self._database.write(work)

    async def look(self) -> list[str]:
        """The names of the servers that are dead. Raises DatabaseAway."""

        async def work(connection: AsyncConnection) -> dict[str, int]:
            rows = await connection.execute(sa.select(servers.c.name, servers.c.beat))
            return {row.name: row.beat for row in rows if row.name != self.name}

        try:
            beats = await self._database.read(work)
        except DatabaseAway:
            self._seen.clear()  # The others could not beat either.
            raise
        locks = await asyncio.to_thread(self._locks, beats)
        self._seen = {name: (beat, self._still(name, beat)) for name, beat in beats.items()}
        return [
            name
            for name, (_, still) in self._seen.items()
            if locks[name] is False or (locks[name] is None and still >= SILENT_LOOKS)
        ]

    async def forget(self, name: str) -> None:
        """Strike a server off, once nothing of it is open. Raises DatabaseAway."""
        gone = servers.delete().where(servers.c.name == name)
        await self._database.write(lambda connection: connection.execute(gone))
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._file(name).unlink)

    def leave(self) -> None:
        """Let go of the lock: from now on the others may take this server for dead."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _still(self, name: str, beat: int) -> int:
        last, still = self._seen.get(name, (beat - 1, 0))
        return still + 1 if beat == last else 0

    def _file(self, name: str) -> Path:
        return self._folder / f"{name.rpartition(':')[2]}.lock"

    def _take_lock(self) -> None:
        if sys.platform == "win32" or self._lock is not None:
            return
        file = self._file(self.name)
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                file.unlink()
                raise
        except OSError as error:
            reason = {"file": str(file), "reason": error.strerror}
            logger.warning("no lock: others see a crash later", extra={"fields": reason})
        else:
            self._lock = lock
            # A child would hold it on when this process has died.
            os.register_at_fork(after_in_child=self.leave)

    def _locks(self, names: Iterable[str]) -> dict[str, bool | None]:
        return {name: self._is_locked(name) for name in names}

    def _is_locked(self, name: str) -> bool | None:
        """Return whether that server holds its lock; None where its file is not to be seen."""
        if sys.platform == "win32":
            return None
        try:
            lock = os.open(self._file(name), os.O_RDONLY)
        except OSError:
            return None
        try:
            # Shared: two servers that look at once do not take each other for the owner.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
        finally:
            os.close(lock)
        return False
