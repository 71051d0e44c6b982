"""Log lines with a request id each, as text or JSON. No key, query or picture is logged,
and a prompt only in the access log of an operator who asks for it.

Libraries do not keep to that at debug: aiosqlite logs the parameters of statements, Pillow the text
in pictures. So they stay at info, whatever level is set.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from contextvars import ContextVar
from typing import Any, Literal

OWN_PACKAGES = ("server", "pipelines", "models")

_BARE_WORD = re.compile(r"[^\s\"=]+")
request_id_variable: ContextVar[str] = ContextVar("request_id", default="")
"""Set while a request is handled."""


def current_request_id() -> str:
    """The id of the request being handled, or `""` outside one."""
    return request_id_variable.get()


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
    # It tells of its own plugins at every start; what it does to a schema, the database says.
    logging.getLogger("alembic").setLevel(logging.WARNING)
