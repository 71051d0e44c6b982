"""Let this node's replicas finish and leave before it goes: a pod's `preStop`.

`python -m server.ray.leave SECONDS` tells Ray that the node will be gone by then. Serve starts
other replicas first where there is room, and those that are here finish what they have.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import ray

from server.ray.cluster import NAMESPACE

_LOOK_SECONDS = 0.5
_REPLICA = "ray::ServeReplica"


def leave(seconds: float, node_ip: str | None = None) -> bool:
    """Drain the node, and return whether all of Serve left it within ``seconds``.

    ``node_ip`` chooses among several nodes on one machine.
    """
    ray.init(
        address="auto",
        namespace=NAMESPACE,
        log_to_driver=False,
        **({} if node_ip is None else {"_node_ip_address": node_ip}),
    )
    node = ray.get_runtime_context().get_node_id()
    here = _raylet_of(node)
    command = Path(sys.executable).with_name("ray")
    subprocess.run(
        [
            *(str(command), "drain-node", f"--node-id={node}"),
            *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the node goes"),
            f"--deadline-remaining-seconds={max(1, round(seconds))}",
        ],
        check=True,
    )
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if not any(_is_replica(process) for process in here.children(recursive=True)):
            return True
        time.sleep(_LOOK_SECONDS)
    return False


def _raylet_of(node: str) -> psutil.Process:
    """Return the process under which the node's workers are. Raises LookupError."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line and line[0].endswith("/raylet") and any(node in part for part in line):
            return process
    raise LookupError(f"no raylet of node {node} is here")


def _is_replica(process: psutil.Process) -> bool:
    try:
        return " ".join(process.cmdline()).startswith(_REPLICA)
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(0 if leave(float(sys.argv[1]), *sys.argv[2:3]) else 1)
