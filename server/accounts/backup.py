"""A copy of an SQLite database while servers write to it: one file with all that was committed."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path


def back_up(source: Path, target: Path) -> int:
    """Write the database `source`, with what its -wal holds, to `target`; return how many keys.

    The file is its owner's alone, and whole or not there.

    Raises OSError, ValueError, sqlite3.Error.
    """
    with tempfile.NamedTemporaryFile(
        prefix=".img2img-", dir=target.parent, delete=False
    ) as unfinished:
        copy = Path(unfinished.name)
    try:
        count = _copy(source, copy)
        copy.replace(target)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    return count


def _copy(source: Path, copy: Path) -> int:
    there = f"{source.absolute().as_uri()}?mode=rw"  # What is not there is not made.
    with (
        closing(sqlite3.connect(there, uri=True)) as database,
        closing(sqlite3.connect(copy)) as copied,
    ):
        database.backup(copied)
        # It came with WAL's mode, in which who looks into it would leave files beside it.
        copied.execute("PRAGMA journal_mode = DELETE")
        return int(copied.execute("SELECT count(*) FROM keys").fetchone()[0])
