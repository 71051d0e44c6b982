"""Progress as server-sent events, for a client that asks for `text/event-stream`.

`progress` events while the picture is made, then one `result` event whose data is the envelope that
an ordinary request would have been answered with, failures too.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import Request
from starlette.responses import StreamingResponse

from pipelines.request import GenerationResult, Progress
from server.engine_host import Handle
from server.envelope import ApiError, failure

EVENT_STREAM = "text/event-stream"


def wants_events(request: Request) -> bool:
    """Whether the client's Accept header names `text/event-stream`."""
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(part.split(";")[0].strip() == EVENT_STREAM for part in accepted)


def event(name: str, data: bytes) -> bytes:
    """One event; `data` is JSON on one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def progress_event(progress: Progress) -> bytes:
    return event(
        "progress",
        json.dumps(
            {
                "step": progress.step,
                "steps": progress.steps,
                "queue_position": progress.queue_position,
            },
            separators=(",", ":"),
        ).encode(),
    )


def stream_response(
    handle: Handle,
    result: Callable[[], Awaitable[GenerationResult]],
    encode: Callable[[GenerationResult], Awaitable[bytes]],
) -> StreamingResponse:
    """Stream a request's progress and its answer.

    `result` awaits the picture and raises ApiError; `encode` makes the success's body. A client
    that leaves withdraws the request.
    """

    async def events() -> AsyncIterator[bytes]:
        try:
            async for progress in handle.progress():
                yield progress_event(progress)
            try:
                body = await encode(await result())
            except ApiError as error:
                body = bytes(failure(error.status, error.message).body)
            yield event("result", body)
        finally:
            handle.cancel()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type=EVENT_STREAM, headers=headers)
