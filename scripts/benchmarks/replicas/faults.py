"""What befalls a cluster under load, and what its clients notice. Run by `measure` on a cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from scripts.benchmarks.replicas.cluster import Cluster
from scripts.benchmarks.replicas.load import Measured, under_load
from scripts.benchmarks.replicas.sleeping import STARTER
from server.engine_service import LoadedModel

REPLICA = "ray::ServeReplica:img2img:Engine"


@dataclass(frozen=True)
class Fault:
    """One fault: its name, and what clients saw meanwhile."""

    name: str
    measured: Measured
    note: str = ""


def replica_pids(cluster: Cluster, node: int | None = None) -> list[int]:
    """Return the processes of the replicas, of one node or of all."""
    return cluster.processes(lambda line: line.startswith(REPLICA), node)


def faults_of(
    cluster: Cluster, model: LoadedModel, clients: int, seconds: float, weights: str
) -> list[Fault]:
    """Have one after the other happen to two nodes of two replicas each."""
    engine = model.engine

    def during(name: str, what: Callable[[], object], note: str = "") -> Fault:
        return Fault(name, under_load(engine, clients, seconds, what), note)

    def signal_one(number: signal.Signals) -> int:
        pid = replica_pids(cluster)[0]
        os.kill(pid, number)
        return pid

    found = [during("none", int), during("replica killed", lambda: signal_one(signal.SIGKILL))]
    wait_for_replicas(cluster, 4)
    found.append(during("replica frozen", lambda: signal_one(signal.SIGSTOP)))
    wait_for_replicas(cluster, 4)
    found.append(
        during("rolling update", lambda: cluster.deploy(**options(4, weights, near_seconds=0.2)))
    )
    wait_for_replicas(cluster, 4)
    drained = during("node drained", lambda: cluster.drain(1))
    left = len(replica_pids(cluster, 0))
    return [*found, Fault(drained.name, drained.measured, f"{left} replicas on the other node")]


def options(replicas: int, weights: str, **more: object) -> dict[str, object]:
    """Return `EngineOptions` of sleeping engines."""
    settings = {"model": weights, "device": "cpu", "log_level": "warning"}
    return {"replicas": replicas, "starter": STARTER, "settings": settings, **more}


def wait_for_replicas(cluster: Cluster, count: int, seconds: float = 90.0) -> None:
    """Wait until so many run, and for the seconds in which fronts hear of them."""
    give_up = time.monotonic() + seconds
    while len(replica_pids(cluster)) != count and time.monotonic() < give_up:
        time.sleep(0.2)
    time.sleep(3.0)
