"""The HTTP server in every pod of a cluster, kept running by Serve.

On machines of your own systemd does this. In a cluster of KubeRay's each worker pod has to answer
`/-/healthz`, so a second application holds one front a node: `import_path:
server.ray.fronts:application`. A front is `img2img serve` in a process of its own, with the pod's
environment, and stops as that does: what runs is finished first.
"""

from __future__ import annotations

import math
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Annotated, Any

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from server.settings import ENV_PREFIX, Settings

RESOURCE = "front"
"""A node has one of it for the one front that may be there: `ray start --resources`."""
_STOP_SECONDS = 15.0
"""Beyond a front's grace: for responses and threads."""
_LOOK_SECONDS = 0.5


class FrontOptions(BaseModel):
    """What `args` may say: ``fronts``, one a node. The rest is in the nodes' environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fronts: Annotated[int, Field(ge=1)] = 1


class Front:
    """One front, as long as its process runs."""

    def __init__(self) -> None:
        # Ray's variables of a worker are not those of a process that joins by itself.
        environment = {n: v for n, v in os.environ.items() if not n.startswith("RAY_JOB")}
        address = ray.get_runtime_context().gcs_address
        environment |= {f"{ENV_PREFIX}RAY_ADDRESS": address, "RAY_ADDRESS": address}
        # Serve's workers are told that they have no card; the front needs none.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(os.getpid())], env=environment
        )
        self._grace = stop_seconds()

    def check_health(self) -> None:
        """Raise where the process has ended, so that Serve starts another."""
        if (status := self._process.poll()) is not None:
            raise RuntimeError(f"the front ended with status {status}")

    def __del__(self) -> None:
        if (process := self.__dict__.get("_process")) is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(self._grace)
        process.kill()


def application(args: FrontOptions | dict[str, Any]) -> serve.Application:
    """Return the application for `serve.run`, or for a config that names it and has ``args``."""
    options = FrontOptions.model_validate(args)
    return (
        serve.deployment(name="Front")(Front)
        .options(
            num_replicas=options.fronts,
            max_replicas_per_node=1,
            ray_actor_options={"num_cpus": 0, "resources": {RESOURCE: 1}},
            health_check_period_s=2.0,
            graceful_shutdown_timeout_s=math.ceil(stop_seconds()),
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        .bind()
    )


def stop_seconds() -> float:
    """Return what a front of this environment takes to stop, at most."""
    environment: dict[str, Any] = {}  # as it is
    return Settings(**environment).grace_period + _STOP_SECONDS


def end_with(parent: int) -> None:
    """Stop this process, in order, once the one that started it is gone: killed, perhaps."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start()
    sys.argv[1:] = ["serve"]
    runpy.run_module("server.cli", run_name="__main__", alter_sys=True)
