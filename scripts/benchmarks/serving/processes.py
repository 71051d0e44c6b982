"""Server processes under test, and the load generator's process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.benchmarks.serving.load import Plan, Planned, Record
from scripts.benchmarks.serving.traces import Call
from scripts.paths import ROOT, python_path
from server.settings import ENV_PREFIX, environment_name

OURS, EXACT = "img2img-server", "img2img-server, exact lane"
PLAIN, BATCHING = "pipeline behind a lock", "request-level batching"
_MODULES = {
    PLAIN: "scripts.benchmarks.serving.baselines.plain_server",
    BATCHING: "scripts.benchmarks.serving.baselines.batching_server",
}


@dataclass(frozen=True)
class Model:
    """What every server runs: the same weights in the same dtype on as many threads."""

    name: str
    device: str
    dtype: str
    threads: int


@dataclass
class ServerUnderTest:
    """A server process that is ready, and what it has used so far."""

    name: str
    url: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """User and system time since the process began."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def peak_rss(self) -> int:
        """The largest resident memory so far, in bytes; what it is now where no peak is kept."""
        status = Path(f"/proc/{self.process.pid}/status")
        if status.exists():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return int(self.process.memory_info().rss)

    def offer(
        self,
        calls: Sequence[Call],
        due: Sequence[float],
        *,
        timeout: float,
        probes: int = 0,
        clients: int = 0,
    ) -> Record:
        """Have the load generator send ``calls`` when they are due; by ``clients``, if any."""
        plan = Plan(
            self.url,
            [Planned(at, c.fields, c.base64) for at, c in zip(due, calls, strict=True)],
            timeout=timeout,
            probes=probes,
            clients=clients,
        )
        done = subprocess.run(
            [sys.executable, "-m", "scripts.benchmarks.serving.load"],
            cwd=ROOT,
            env=python_environment(),
            input=plan.to_json(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return Record.from_json(done.stdout)


def python_environment(**settings: str) -> dict[str, str]:
    """The environment of a child process: no setting of the caller's, the packages found first."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    environment["PYTHONPATH"] = python_path()
    # Threads that wait must not spin: the load generator needs the cores too.
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    return environment | {environment_name(name): value for name, value in settings.items()}


@contextmanager
def running_servers(
    names: Sequence[str], model: Model, settings: Mapping[str, str]
) -> Iterator[dict[str, ServerUnderTest]]:
    """The named servers, all ready; stopped at the end. ``settings`` are those of ours."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    servers: dict[str, ServerUnderTest] = {}
    try:
        for name in names:
            port = _free_port()
            command, environment = _start(name, port, model, settings)
            processes[name] = subprocess.Popen(command, cwd=ROOT, env=environment)
            url = f"http://127.0.0.1:{port}"
            servers[name] = ServerUnderTest(name, url, psutil.Process(processes[name].pid))
        for name, server in servers.items():
            _wait_until_ready(server, processes[name])
        yield servers
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _start(
    name: str, port: int, model: Model, settings: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    options = {"model": model.name, "device": model.device, "dtype": model.dtype}
    options |= {"threads": str(model.threads), "port": str(port)}
    if name in _MODULES:
        arguments = [text for key, value in options.items() for text in (f"--{key}", value)]
        return [sys.executable, "-m", _MODULES[name], *arguments], python_environment()
    ours = {"log_level": "warning", **settings, **options}
    if name == EXACT:
        ours["batch_invariant"] = "true"
    return [sys.executable, "-m", "server.cli", "serve"], python_environment(**ours)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(
    server: ServerUnderTest, process: subprocess.Popen[bytes], seconds: float = 300
) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/health/ready", timeout=30) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if process.poll() is not None:
            raise RuntimeError(f"{server.name} ended with status {process.returncode}")
        if time.monotonic() > give_up:
            raise TimeoutError(f"{server.name} was not ready within {seconds:g} s")
        time.sleep(0.1)
