"""A server that is started again after each death, on the same port with the same settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import requests

from scripts.paths import ROOT
from server.settings import ENV_PREFIX, environment_name
from tests.server.server_process import free_port

START_SECONDS = 120.0


class Nursery:
    """The process that forks servers, one at a time; their log is `log`."""

    def __init__(self, folder: Path) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
        self.log = folder / "server.log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.robustness.server_nursery"],
            cwd=ROOT,
            env=kept,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("wb"),
            text=True,
        )
        self._expect("imported")

    def start(self, environment: Mapping[str, str], patch: str = "") -> int:
        """Start a server; return its process id."""
        assert self._process.stdin is not None
        order = {"environment": dict(environment), "patch": patch}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def ended(self) -> int:
        """Wait for the end of the server; return its status, below 0 for the signal's number."""
        return int(self._expect("ended"))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _expect(self, word: str) -> str:
        line = self._line()
        if line.partition(" ")[0] != word:
            raise RuntimeError(f"the nursery said {line!r}:\n{self.log.read_text()[-3000:]}")
        return line.partition(" ")[2]


class Lives:
    """One server after another. `settings` are as for the product; `patch`: see the nursery."""

    def __init__(self, nursery: Nursery, patch: str = "", **settings: str) -> None:
        self._nursery = nursery
        self._patch = patch
        port = str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        settings = {"port": port, "threads": "1", "log_level": "warning", **settings}
        self.environment = {environment_name(name): value for name, value in settings.items()}
        self.pid = 0

    def start(self) -> None:
        """Start the next life and wait until it is ready."""
        self.pid = self._nursery.start(self.environment, self._patch)
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            with suppress(requests.RequestException):
                if requests.get(self.url + "/health/ready", timeout=5).status_code == 200:
                    return
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGUSR2)  # Say where each thread is.
        time.sleep(1.0)
        raise RuntimeError(f"the server did not start:\n{self._nursery.log.read_text()[-6000:]}")

    def end(self, by: signal.Signals = signal.SIGKILL) -> int:
        """End this life by a signal; return its status."""
        os.kill(self.pid, by)
        self.pid = 0
        return self._nursery.ended()

    def close(self) -> None:
        """Kill what still runs: outside Linux the server would outlive the nursery, its parent."""
        if self.pid:
            self.end()
