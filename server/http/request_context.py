"""The middleware that gives each request its id, the time of its arrival and its record."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.deadline import deadline_of
from server.observability.logs import request_id_variable
from server.observability.request_record import (
    CLIENT_GONE,
    RequestObserver,
    RequestRecord,
    record_variable,
)

REQUEST_ID_HEADER = "X-Request-Id"

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class RequestContext:
    """Gives each request its id and its record, which ``observers`` get when it has ended."""

    def __init__(self, app: ASGIApp, observers: Sequence[RequestObserver] = ()) -> None:
        self.app = app
        self.observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = _new_record(scope, _accept_or_make_id(headers.get(REQUEST_ID_HEADER)))
        id_token = request_id_variable.set(record.request_id)
        record_token = record_variable.set(record)
        added = {REQUEST_ID_HEADER: record.request_id}
        for observer in self.observers:
            added.update(observer.begun(record, headers))
        complete = False

        async def with_headers(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message).update(added)
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self.app(scope, receive, with_headers)
            if not complete:  # nothing was sent, or not all of a stream
                record.status = CLIENT_GONE
        except Exception:
            record.status = 500
            raise
        except BaseException:
            record.status = CLIENT_GONE
            raise
        finally:
            record.seconds = time.monotonic() - record.arrived
            for observer in self.observers:
                observer.ended(record)
            record_variable.reset(record_token)
            request_id_variable.reset(id_token)


def _new_record(scope: Scope, request_id: str) -> RequestRecord:
    client, path = scope.get("client"), scope["path"]
    return RequestRecord(
        method=scope["method"],
        path=path,
        resource=path.removeprefix(scope.get("root_path", "")),
        client=client[0] if client else "-",
        request_id=request_id,
        arrived=deadline_of(scope, 0.0),
    )


def _accept_or_make_id(offered: str | None) -> str:
    if offered is not None and _SANE_REQUEST_ID.fullmatch(offered):
        return offered
    return uuid.uuid4().hex
