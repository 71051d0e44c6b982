"""Deploy to the cluster of RAY_ADDRESS: `engines` or `fronts`, and their options as JSON."""

from __future__ import annotations

import json
import sys
import time

import ray
from ray import serve

from server.ray import deployment, fronts
from server.ray.deployment import EngineOptions
from server.ray.fronts import FrontOptions

FRONTS = "img2img-fronts"


def deploy(application: serve.Application, name: str, seconds: float = 120.0) -> None:
    """Deploy an application, and wait until all of its replicas run."""
    serve.start(proxy_location="Disabled")
    target = serve.RunTarget(application, name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)
    give_up = time.monotonic() + seconds
    while (state := serve.status().applications[name]).status != "RUNNING":
        if state.status == "DEPLOY_FAILED" or time.monotonic() > give_up:
            raise RuntimeError(state.message or f"still {state.status} after {seconds:g} s")
        time.sleep(0.2)


if __name__ == "__main__":
    ray.init(address="auto", namespace="serve")
    asked = json.loads(sys.argv[2])
    if sys.argv[1] == "engines":
        deploy(deployment.application(EngineOptions(**asked)), deployment.APP)
    else:
        deploy(fronts.application(FrontOptions(**asked)), FRONTS)
