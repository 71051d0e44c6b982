"""A Redis of its own on a free port of the loopback address, gone when it is done with."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
SECONDS_TO_START = 10.0


class NoRedis(Exception):
    """There is no Redis server on this machine that could be started; the message says why."""


@dataclass
class Redis:
    """A server; `stop` and `start` as an outage would: what it held is gone, its port stays."""

    program: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers; no-op while it runs. Raises NoRedis."""
        if self.process is not None:
            return
        options = {"bind": HOST, "port": str(self.port), "save": "", "appendonly": "no"}
        command = [self.program, "--dir", str(self.folder)]
        for name, value in options.items():
            command += [f"--{name}", value]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        give_up = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.stop()
                raise NoRedis(f"it did not start: {self.log.strip()[-300:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill it; no-op while it is stopped."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self, frozen: bool) -> None:
        """Stop it from answering, without closing a connection; or let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def flush(self) -> None:
        """Forget every key."""
        assert self._ask(b"FLUSHALL") == b"+OK\r\n"

    def _answers(self) -> bool:
        try:
            return self._ask(b"PING") == b"+PONG\r\n"
        except OSError:
            return False

    def _ask(self, command: bytes) -> bytes:
        with socket.create_connection((HOST, self.port), timeout=5) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(1024)


@contextmanager
def throwaway_redis() -> Iterator[Redis]:
    """Start one, and end it and its folder afterwards. Raises NoRedis."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise NoRedis("no Redis server is installed (Debian: apt-get install redis-server)")
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port = int(listener.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="img2img-redis-") as folder:
        server = Redis(program, Path(folder), port)
        try:
            server.start()
            yield server
        finally:
            server.stop()
