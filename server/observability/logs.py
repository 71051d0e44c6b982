"""Log lines with a request id each, as text or JSON. No key, prompt, query or picture is logged.

Libraries do not keep to that at debug: aiosqlite logs the parameters of statements, Pillow the text
in pictures. So they stay at info, whatever level is set.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar
from typing import Any, Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.deadline import stamp_arrival

REQUEST_ID_HEADER = "X-Request-Id"
CLIENT_GONE = 499
"""What the log says of a request whose client left; nobody receives it."""

PROBES = ("/health/live", "/health/ready")
OWN_PACKAGES = ("server", "pipelines", "models")

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_BARE_WORD = re.compile(r"[^\s\"=]+")
_request_id: ContextVar[str] = ContextVar("request_id", default="")

access_log = logging.getLogger("server.access")


def current_request_id() -> str:
    """The id of the request being handled, or `""` outside one."""
    return _request_id.get()


def _event_fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        + f".{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    if request_id := current_request_id():
        fields["request_id"] = request_id
    fields.update(getattr(record, "fields", {}))
    return fields


class TextFormatter(logging.Formatter):
    """`time=... level=info message="..."`: one line an event, traceback lines after it."""

    def format(self, record: logging.LogRecord) -> str:
        line = " ".join(f"{key}={_quoted(value)}" for key, value in _event_fields(record).items())
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def _quoted(value: object) -> str:
    text = str(value)
    # A path may hold escape sequences: json.dumps makes what is not ASCII harmless to terminals.
    bare = text.isascii() and text.isprintable() and _BARE_WORD.fullmatch(text)
    return text if bare else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, tracebacks inside it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _event_fields(record)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def configure_logging(level: str, log_format: Literal["text", "json"]) -> None:
    """Send every logger's events to standard error in one format; at debug, our own alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    own_level: int = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(own_level, logging.INFO))
    for package in OWN_PACKAGES:
        logging.getLogger(package).setLevel(own_level)
    # The form parser remarks on each malformed byte; the answer already says so.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


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
        token = _request_id.set(request_id)
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
            _request_id.reset(token)


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
