"""A PostgreSQL of its own in a new folder, on a unix socket alone, gone when it is done with."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "img2img"


class NoPostgres(Exception):
    """There is no PostgreSQL server on this machine that could be started; the message says why."""


def binaries() -> Path:
    """The folder with `initdb` and `postgres`. Raises NoPostgres."""
    folders = []
    if (config := shutil.which("pg_config")) is not None:
        told = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
        folders.append(Path(told.stdout.strip()))
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (found := shutil.which("initdb")) is not None:
        folders.append(Path(found).parent)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise NoPostgres("no PostgreSQL server is installed (Debian: apt-get install postgresql)")


@dataclass
class Postgres:
    """A running server; `stop` and `start` as an outage would."""

    folder: Path
    command_prefix: list[str]
    binaries: Path
    durable: bool

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/postgres?host={self.folder}"

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.folder} -c max_connections=300"
        if not self.durable:
            options += " -c fsync=off"
        self._control("start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    def freeze(self, frozen: bool) -> None:
        """Stop every process from answering, without closing a connection; or let them go on."""
        postmaster = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(postmaster)], capture_output=True, text=True
        )
        for pid in (postmaster, *map(int, children.stdout.split())):
            os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def run_sql(self, statement: str) -> None:
        """Run one statement in the database `postgres`."""
        command = [
            str(self.binaries / "psql"),
            "-h",
            str(self.folder),
            "-U",
            USER,
            "-d",
            "postgres",
        ]
        subprocess.run(
            [*command, "-qc", statement], check=True, capture_output=True, cwd=self.folder
        )

    def _control(self, action: str, *arguments: str) -> None:
        command = [str(self.binaries / "pg_ctl"), action, "-D", str(self.folder / "data")]
        subprocess.run(
            [*self.command_prefix, *command, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )


@contextmanager
def throwaway_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """Starts it; `durable` writes through to the disk as a real one does. Raises NoPostgres."""
    programs = binaries()
    # Not pytest's folder: that is closed to other users, and root may not run PostgreSQL.
    folder = Path(tempfile.mkdtemp(prefix="img2img-pg-"))
    prefix: list[str] = []
    try:
        if os.geteuid() == 0:
            try:
                owner = pwd.getpwnam("postgres")
            except KeyError:
                raise NoPostgres(
                    "root may not run PostgreSQL, and no user postgres exists"
                ) from None
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        initdb = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", USER]
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(
            [*prefix, *initdb, *options], capture_output=True, text=True, cwd=folder
        )
        if made.returncode:
            raise NoPostgres(f"initdb failed: {made.stderr.strip()[-300:]}")
        server = Postgres(folder, prefix, programs, durable)
        server.start()
        try:
            yield server
        finally:
            subprocess.run(
                [*prefix, str(programs / "pg_ctl"), "stop", "-m", "immediate",
                 "-D", str(folder / "data")],
                capture_output=True, cwd=folder, check=False,
            )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
