"""`/metrics` on the port of the API itself: where that is private, or the operator wants it so."""

from __future__ import annotations

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.observability.metrics import MEDIA_TYPE, Metrics

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Return Prometheus' metrics. A scrape waits for no request and no unit of work."""
    measured: Metrics = request.app.state.metrics
    body = await anyio.to_thread.run_sync(measured.exposition)
    return Response(body, headers={"Content-Type": MEDIA_TYPE})
