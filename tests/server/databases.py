"""Both kinds of database for tests, empty and migrated, each time a new one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from scripts.services.throwaway_postgres import Postgres

KINDS = ("sqlite", "postgresql")
_numbers = itertools.count(1)


class Clock:
    """A clock that tests set, in milliseconds."""

    def __init__(self, millis: int = 1_750_000_000_000) -> None:
        self.millis = millis

    def __call__(self) -> int:
        return self.millis

    def forward(self, seconds: float) -> None:
        self.millis += int(seconds * 1000)


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / f'accounts-{next(_numbers)}.db'}"


@contextmanager
def new_postgres_database(postgres: Postgres) -> Iterator[str]:
    """The URL of a new database on a running server."""
    name = f"test_{next(_numbers)}"
    postgres.run_sql(f"CREATE DATABASE {name}")
    url = sa.make_url(postgres.url).set(database=name)
    yield url.render_as_string(hide_password=False)
    postgres.run_sql(f"DROP DATABASE {name} WITH (FORCE)")
