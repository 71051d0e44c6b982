"""The disk is full, the database or Redis is gone, locked or frozen."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.robustness.faults.scene import Fault, NotHere, Place, Scene, on_sqlite
from scripts.services.throwaway_postgres import NoPostgres, throwaway_postgres
from scripts.services.throwaway_redis import NoRedis, throwaway_redis

AWAY_SECONDS = 4.0
FROZEN_SECONDS = 7.0
"""More than SQLite waits for a lock, and than PostgreSQL is waited for to connect."""
RATE = "100000/minute"


@contextmanager
def on_small_disk(folder: Path) -> Iterator[Place]:
    """A server whose data folder is a file system of 32 MiB. Raises NotHere."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        raise NotHere("a small file system cannot be mounted here")
    try:
        database = f"sqlite:///{disk / 'accounts.db'}"
        yield Place({"database_url": database, "data_dir": str(disk), "answers_mib": "1"}, disk)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@contextmanager
def on_postgres(_: Path) -> Iterator[Place]:
    """A server whose accounts are in PostgreSQL. Raises NotHere."""
    try:
        with throwaway_postgres(durable=True) as postgres:
            yield Place({"database_url": postgres.url}, postgres)
    except NoPostgres as error:
        raise NotHere(str(error)) from None


@contextmanager
def on_redis(folder: Path) -> Iterator[Place]:
    """A server that counts rates in Redis. Raises NotHere."""
    try:
        with on_sqlite(folder) as place, throwaway_redis() as redis:
            yield Place(place.settings | {"limits_url": redis.url, "rate": RATE}, redis)
    except NoRedis as error:
        raise NotHere(str(error)) from None


def disk_full(scene: Scene) -> None:
    filler: Path = scene.place.service / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    time.sleep(AWAY_SECONDS)
    filler.unlink()
    scene.mark()
    scene.wait_for_answers()


def _sqlite_file(scene: Scene) -> Path:
    return Path(scene.place.settings["database_url"].removeprefix("sqlite:///"))


def sqlite_locked(scene: Scene) -> None:
    """Another process holds the lock of writers."""
    with contextlib.closing(sqlite3.connect(_sqlite_file(scene), timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(FROZEN_SECONDS)
        other.rollback()
    scene.mark()
    scene.wait_for_answers()


def sqlite_removed(scene: Scene) -> None:
    """The file is moved away, as by a restored backup, and comes back."""
    file = _sqlite_file(scene)
    away = file.with_name("away.db")
    file.rename(away)
    time.sleep(0.5)  # what had begun ends
    since = len(scene.crowd.right)
    time.sleep(AWAY_SECONDS)
    if given := len(scene.crowd.right) - since:
        scene.problems.append(f"{given} pictures were given away without a database")
    away.rename(file)
    scene.mark()
    scene.wait_for_answers()


def service_stopped(scene: Scene) -> None:
    scene.place.service.stop()
    time.sleep(AWAY_SECONDS)
    scene.place.service.start()
    scene.mark()
    scene.wait_for_answers()


def service_frozen(scene: Scene) -> None:
    """It neither answers nor closes a connection."""
    scene.place.service.freeze(True)
    time.sleep(FROZEN_SECONDS)
    scene.place.service.freeze(False)
    scene.mark()
    scene.wait_for_answers()


FAULTS = (
    Fault("disk full", disk_full, on_small_disk),
    Fault("SQLite file locked", sqlite_locked, on_sqlite),
    Fault("SQLite file gone", sqlite_removed, on_sqlite),
    Fault("PostgreSQL stopped", service_stopped, on_postgres),
    Fault("PostgreSQL frozen", service_frozen, on_postgres),
    Fault("Redis stopped", service_stopped, on_redis),
    Fault("Redis frozen", service_frozen, on_redis),
)
