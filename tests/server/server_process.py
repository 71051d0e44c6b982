"""Server processes for tests: started on a free port, waited for, and always stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from scripts.project.shipped_environment import shipped_environment
from server.settings import ENV_PREFIX, Settings, environment_name

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = "server.cli"


@dataclass
class ServerProcess:
    process: subprocess.Popen[bytes]
    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **options)  # type: ignore[arg-type]

    def wait_for(self, path: str, status: int = 200, seconds: float = 120) -> requests.Response:
        """The first answer of that status."""
        give_up = time.monotonic() + seconds
        while True:
            try:
                response = self.get(path)
                if response.status_code == status:
                    return response
            except requests.ConnectionError:
                pass
            assert self.process.poll() is None, self.log
            assert time.monotonic() < give_up, self.log
            time.sleep(0.05)

    def log_line(self, part: str, seconds: float = 30) -> str:
        """The one line that holds `part`; an answer may arrive before its line is written."""
        (line,) = self.lines(part, 1, seconds)
        return line

    def lines(self, part: str, count: int, seconds: float = 30) -> list[str]:
        """The lines that hold `part`, once there are so many."""
        give_up = time.monotonic() + seconds
        while len(lines := [line for line in self.log.splitlines() if part in line]) < count:
            assert time.monotonic() < give_up, self.log
            time.sleep(0.05)
        return lines

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_status(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_server(
    module: str, folder: Path, *args: str, **settings: str
) -> Iterator[ServerProcess]:
    """Runs `python -m module args` with the given settings in its environment.

    The product itself runs in the shipped environment, which lacks what the tests alone need.
    """
    python = shipped_environment() if module == PRODUCT else sys.executable
    unknown = set(settings) - set(Settings.model_fields)
    assert not unknown
    port = settings.setdefault("port", str(free_port()))
    settings.setdefault("data_dir", str(folder))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)
    }
    environment |= {environment_name(name): value for name, value in settings.items()}
    log_file = folder / f"server-{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [str(python), "-m", module, *args],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield ServerProcess(process, f"http://127.0.0.1:{port}", log_file)
    finally:
        process.kill()
        process.wait()
