"""The middleware that gives each request its id, the time of its arrival and its log line."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.deadline import stamp_arrival
from server.observability.logs import request_id_variable

REQUEST_ID_HEADER = "X-Request-Id"
CLIENT_GONE = 499
"""What the log says of a request whose client left; nobody receives it."""

PROBES = ("/health/live", "/health/ready")

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

access_log = logging.getLogger("server.access")


class RequestContext:
    """Gives each request its id and, when it is over, its line in the access log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stamp_arrival(scope)
        request_id = _accept_or_make_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        token = request_id_variable.set(request_id)
        started = time.perf_counter()
        status = CLIENT_GONE

        async def with_request_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, with_request_id)
        finally:
            _log_access(scope, status, time.perf_counter() - started)
            request_id_variable.reset(token)


def _accept_or_make_id(offered: str | None) -> str:
    if offered is not None and _SANE_REQUEST_ID.fullmatch(offered):
        return offered
    return uuid.uuid4().hex


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    client = scope.get("client")
    # Probes come every few seconds; why they fail has a line of its own, once.
    path: str = scope["path"]
    quiet = path.removeprefix(scope.get("root_path", "")) in PROBES
    access_log.log(
        logging.DEBUG if quiet else logging.INFO,
        "request",
        extra={
            "fields": {
                "method": scope["method"],
                "path": path,
                "status": status,
                "seconds": round(seconds, 4),
                "client": client[0] if client else "-",
            }
        },
    )
