"""`/health/live` and `/health/ready`, for orchestrators and load balancers. Open to everyone."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from server.engine_service import EngineHost
from server.http.envelope import failure, success

_RETRY = {"Retry-After": "5"}

router = APIRouter(prefix="/health", tags=["health"])
ray_router = APIRouter(include_in_schema=False)


@router.get("/live", summary="Is the process worth keeping?")
async def live(request: Request) -> Response:
    """200, also while the model loads; 503 once loading has failed, the engine has died, or its
    work has hung for so long that only a restart helps."""
    host: EngineHost = request.app.state.engine_host
    if host.live:
        return success({"status": "alive"})
    return failure(503, host.obstacle, _RETRY)


@router.get("/ready", summary="Can it take a request now?")
async def ready(request: Request) -> Response:
    """200 once the model is loaded and warm; 503 before that, while its work hangs, and while
    shutting down."""
    host: EngineHost = request.app.state.engine_host
    model = host.serving_model
    if model is not None:
        data = {"model": model.name, "device": model.device, "dtype": model.dtype}
        return success({"status": "ready", **data})
    return failure(503, host.obstacle, _RETRY)


@ray_router.get("/-/healthz")
async def healthz(request: Request) -> Response:
    """What KubeRay asks of every worker pod, whose proxy would answer it: `success`, or 503."""
    host: EngineHost = request.app.state.engine_host
    if host.serving_model is not None:
        return PlainTextResponse("success")
    return PlainTextResponse(host.obstacle, 503, _RETRY)
