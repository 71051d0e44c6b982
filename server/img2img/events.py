"""Progress as server-sent events, for a client that asks for `text/event-stream`.

`progress` events while the picture is made, then one `result` event whose data is the envelope that
an ordinary request would have been answered with, failures too. What such an answer says beside its
body, and a stream has begun too early for, is in it too: the status and the Retry-After of a
failure, the credits.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol

import anyio
import anyio.to_thread
from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pipelines.request import Pixels, Progress
from server.engine_service import Handle
from server.http.envelope import failure, json_bytes, with_member
from server.http.errors import ApiError
from server.http.waiting import TimeLimit
from server.images.decode import encode_png

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_SECONDS = 10.0
"""Seconds without an event, after which a comment is sent: proxies cut what is silent for 30."""

_SMALL = 3 * 128 * 128
"""Bytes of a preview that is written in no time."""

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def may_stream(request: Request) -> bool:
    """Return whether the client can be sent a stream.

    Not over HTTP/1.0, where an answer without a length could not be told from one cut short.
    """
    return str(request.scope["http_version"]) != "1.0"


def wants_events(request: Request) -> bool:
    """Return whether the client's Accept header names `text/event-stream`, and it may be sent."""
    if not may_stream(request):
        return False
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(part.split(";")[0].strip() == EVENT_STREAM for part in accepted)


def event(name: str, data: bytes) -> bytes:
    """One event; `data` is JSON on one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def progress_event(progress: Progress, preview: Pixels | None = None) -> bytes:
    """A `progress` event, with `preview` as a base64 PNG: a pixel for every 8 x 8 of the picture,
    or as a tiny VAE draws it."""
    data: dict[str, object] = {
        "step": progress.step,
        "steps": progress.steps,
        "evaluation": progress.evaluation,
        "evaluations": progress.evaluations,
        "queue_position": progress.queue_position,
    }
    if progress.stage is not None:
        data["stage"] = progress.stage
    if progress.seconds_left is not None:
        data["seconds_left"] = round(progress.seconds_left, 1)
    if preview is not None:
        data["preview"] = base64.b64encode(encode_png(preview, {})).decode()
    return event("progress", json_bytes(data))


class Cancellable(Protocol):
    """What is withdrawn when a stream of it ends: a handle, or several in a batch."""

    def cancel(self) -> None: ...


class EventStream(StreamingResponse):
    """A stream of `events` that withdraws the request of `handle` however it ends: its client may
    leave while something is sent, when no generator is told."""

    def __init__(self, handle: Cancellable, events: AsyncGenerator[bytes]) -> None:
        super().__init__(kept_alive(events), media_type=EVENT_STREAM, headers=STREAM_HEADERS)
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._handle.cancel()


Failing = Callable[[Exception], Awaitable[ApiError]]
"""Gives back what a request holds, logs why it failed, and returns what its client is told."""


def stream_response(
    handle: Handle, answer: Callable[[], Awaitable[bytes]], limit: TimeLimit, failed: Failing
) -> EventStream:
    """Stream a request's progress and its answer.

    `answer` awaits the success's body; what `failed` makes of its exception is the `result` too. A
    client that leaves withdraws the request, and so does the end of its time.
    """

    async def events() -> AsyncGenerator[bytes]:
        try:
            async for told in progress_events(handle, limit):
                yield told
            body = await answer()
        except Exception as error:
            body = refused_body(await failed(error))
        yield event("result", body)

    return EventStream(handle, events())


async def progress_events(handle: Handle, limit: TimeLimit) -> AsyncGenerator[bytes]:
    """Yield `progress` events until the request has ended. Raises DeadlineExceeded."""
    # The limit is on each wait: the time while an event is sent is the client's.
    updates = handle.progress()
    sent: Pixels | None = None
    while (progress := await limit.apply(anext(updates, None))) is not None:
        preview = None if progress.preview is sent else progress.preview
        if preview is None or preview.size <= _SMALL:
            yield progress_event(progress, preview)
        else:
            yield await anyio.to_thread.run_sync(progress_event, progress, preview)
        sent = progress.preview


def refused_body(refusal: ApiError) -> bytes:
    """Return the body of a `result` event for a failure."""
    refused = bytes(failure(refusal.status, refusal.message).body)
    # The response's own status was 200 when it began, and its headers were sent.
    body = with_member(refused, "status", refusal.status)
    seconds = refusal.retry_after
    return body if seconds is None else with_member(body, "retry_after", seconds)


async def kept_alive(events: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    """Yield the events, and a comment whenever none has come for a while."""
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait((coming,), timeout=KEEP_ALIVE_SECONDS))[0]:
                yield KEEP_ALIVE
        finally:
            if not coming.done():
                # The client has left: what the events still hold is let go of before this ends.
                coming.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait((coming,))
        if (data := coming.result()) is None:
            return
        yield data


def stream_finished(body: bytes) -> Response:
    """A stream of an answer that is there already."""
    return Response(event("result", body), media_type=EVENT_STREAM, headers=STREAM_HEADERS)
