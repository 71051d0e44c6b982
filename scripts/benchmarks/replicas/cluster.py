"""A cluster of Ray on this machine, for tests and benchmarks: a head, more nodes, the engines.

Every node is a `ray start` on a loopback address of its own, with a token of this cluster's.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[3]
RAY = Path(sys.executable).with_name("ray")
DEPLOYED = "scripts.benchmarks.replicas.deploy"


@dataclass
class Cluster:
    """Nodes that run, the environment of what joins them, and the folder of their files."""

    folder: Path
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_node(self, cpus: int, gpus: int, **resources: float) -> None:
        """Start another node; the first one is the head."""
        number = len(self.nodes) + 1
        address = f"127.0.0.{number}"
        here = (
            ["--head", "--port=6399", "--include-dashboard=false"]
            if number == 1
            else ["--address=127.0.0.1:6399"]
        )
        log_file = self.folder / f"node-{number}.log"
        with log_file.open("wb") as log:
            node = subprocess.Popen(
                [
                    *(str(RAY), "start", "--block", "--disable-usage-stats", *here),
                    *(f"--node-ip-address={address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"),
                    f"--resources={json.dumps(resources)}",
                    "--object-store-memory=200000000",
                    f"--temp-dir={self.folder / 'ray'}",
                ],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(node)
        if number == 1:
            _wait_for_head(self)

    def run(self, *arguments: str) -> str:
        """Run Python with the arguments, in a process that may join, and return what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
        )
        if done.returncode:
            raise RuntimeError(f"{arguments}: {done.stderr[-4000:]}")
        return done.stdout

    def deploy(self, **options: Any) -> None:
        """Deploy the engines, `server.ray.deployment.EngineOptions`, and wait until they run."""
        self.run("-m", DEPLOYED, "engines", json.dumps(options))

    def deploy_fronts(self, **options: Any) -> None:
        """Deploy the fronts, `server.ray.fronts.FrontOptions`, and wait until they run."""
        self.run("-m", DEPLOYED, "fronts", json.dumps(options))

    def processes(self, wanted: Callable[[str], bool], node: int | None = None) -> list[int]:
        """Return what runs with a command line that is wanted, on one node or on all."""
        found = []
        for one in self.nodes if node is None else [self.nodes[node]]:
            for process in psutil.Process(one.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    if wanted(" ".join(process.cmdline())):
                        found.append(process.pid)
        return sorted(found)

    def drain(self, number: int) -> None:
        """Drain a node as an orchestrator does before it takes it away."""
        code = "import ray; ray.init(address='auto'); print('NODES', *(n['NodeID'] + '@' + "
        code += "n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']))"
        (line,) = (one for one in self.run("-c", code).splitlines() if one.startswith("NODES "))
        by_address = {node.partition("@")[2]: node.partition("@")[0] for node in line.split()[1:]}
        subprocess.run(
            [
                *(str(RAY), "drain-node", f"--node-id={by_address[f'127.0.0.{number + 1}']}"),
                *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=drained"),
                "--deadline-remaining-seconds=60",
            ],
            env=self.environment,
            check=True,
            capture_output=True,
        )


@contextlib.contextmanager
def cluster(*nodes: tuple[int, int], **environment: str) -> Iterator[Cluster]:
    """Run nodes of so many (logical CPUs, GPUs) each, with more variables in their environment."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as name:
        folder = Path(name)
        variables = os.environ | environment
        variables |= {
            "RAY_ADDRESS": "127.0.0.1:6399",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_ENABLE_AUTO_CONNECT": "0",
            "RAY_worker_niceness": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # A frozen replica's card is free at once, not after the longest request's time.
            "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
            "PYTHONPATH": str(ROOT),
            "IMG2IMG_DATA_DIR": name,
        }
        running = Cluster(folder, variables)
        try:
            for cpus, gpus in nodes:
                running.add_node(cpus, gpus)
            yield running
        finally:
            for node in reversed(running.nodes):
                node.terminate()
            for node in running.nodes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.wait(15)
                node.kill()
                node.wait()


def _wait_for_head(running: Cluster) -> None:
    log = running.folder / "node-1.log"
    give_up = time.monotonic() + 60
    while "Ray runtime started" not in log.read_text():
        if running.nodes[0].poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"Ray's head does not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)
