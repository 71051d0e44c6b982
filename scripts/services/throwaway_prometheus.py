"""A Prometheus of its own on a free port of the loopback address, gone when it is done with."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

HOST = "127.0.0.1"
SECONDS_TO_START = 30.0
Sample = dict[str, Any]


class NoPrometheus(Exception):
    """There is none on this machine that could be started; the message says why."""


@dataclass(frozen=True)
class Prometheus:
    """A server that scrapes."""

    url: str

    def query(self, expression: str) -> list[Sample]:
        """Return the samples of an instant query. Raises ValueError with what is wrong with it."""
        answer = requests.get(f"{self.url}/api/v1/query", {"query": expression}, timeout=30).json()
        if answer["status"] != "success":
            raise ValueError(f"{answer['error']}: {expression}")
        result: list[Sample] = answer["data"]["result"]
        return result

    def wait_for(self, expression: str, seconds: float = 60.0) -> list[Sample]:
        """Return the samples of a query as soon as there are any. Raises TimeoutError."""
        give_up = time.monotonic() + seconds
        while not (found := self.query(expression)):
            if time.monotonic() > give_up:
                raise TimeoutError(f"{expression} has had no value for {seconds:g} s")
            time.sleep(0.2)
        return found


@contextmanager
def throwaway_prometheus(
    targets: Sequence[str], rules: Sequence[Path] = (), interval: str = "1s"
) -> Iterator[Prometheus]:
    """Scrape ``targets``, each HOST:PORT, every ``interval`` meanwhile. Raises NoPrometheus."""
    program = shutil.which("prometheus")
    if program is None:
        raise NoPrometheus("no Prometheus is installed (Debian: apt-get install prometheus)")
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="img2img-prometheus-") as folder:
        config, log = Path(folder) / "prometheus.yml", Path(folder) / "log"
        config.write_text(
            f"global: {{scrape_interval: {interval}, evaluation_interval: {interval}}}\n"
            f"rule_files: {[str(rule.resolve()) for rule in rules]}\n"
            "scrape_configs:\n"
            f"  - {{job_name: img2img-server, static_configs: [{{targets: {list(targets)}}}]}}\n"
        )
        options = [f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        options.append(f"--web.listen-address={HOST}:{port}")
        with log.open("wb") as output:
            process = subprocess.Popen([program, *options], stdout=output, stderr=output)
        try:
            _wait_until_ready(f"http://{HOST}:{port}", process, log)
            yield Prometheus(f"http://{HOST}:{port}")
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            if requests.get(f"{url}/-/ready", timeout=5).ok:
                return
        except requests.ConnectionError:
            pass
        if process.poll() is not None or time.monotonic() > give_up:
            process.kill()
            raise NoPrometheus(f"it did not start: {log.read_text()[-500:]}")
        time.sleep(0.05)
