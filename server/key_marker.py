"""The list, in the data folder, of the databases in which keys were made.

With it a database that is missing (a volume that is not mounted) is told from one that is new.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_FILE = "databases-with-keys"
_HEAD = "# Keys were made in these databases; a server does not start without its own.\n"


def sqlite_identity(file: Path) -> str:
    """Return what tells a database of one file from others."""
    return f"sqlite:///{os.path.realpath(file)}"


def marker_file(folder: Path) -> Path:
    return folder / _FILE


def keys_were_made(folder: Path, identity: str) -> bool:
    """Return whether the list names this database. Raises OSError where there is one, but
    unreadable."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return identity in marker_file(folder).read_text("utf-8", "surrogateescape").splitlines()
    return False


def file_was_made(folder: Path, file: Path) -> bool:
    """Return whether this SQLite file is there, or was: its keys are not to be done without."""
    try:
        return keys_were_made(folder, sqlite_identity(file)) or file.exists()
    except OSError:
        return True  # Closed, not open, where it cannot be told.


def note_keys_made(folder: Path, identity: str) -> None:
    """Add a database to the list, once. Raises OSError."""
    if keys_were_made(folder, identity):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with marker_file(folder).open("a", encoding="utf-8", errors="surrogateescape") as marker:
        if not marker.tell():
            marker.write(_HEAD)
        marker.write(f"{identity}\n")


def missing_message(folder: Path, identity: str) -> str:
    """Return what to say of a database on the list in which there is no key."""
    return (
        f"the database {identity}, in which keys were made, is missing or empty (is its volume "
        f"mounted?); to begin with a new one, remove its line from {marker_file(folder)}"
    )
