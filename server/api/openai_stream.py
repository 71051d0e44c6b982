"""The server-sent events of OpenAI's image API: partial images, then the finished ones."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Any

import anyio.to_thread
from starlette.responses import Response

from pipelines.request import Pixels, Progress
from server.api.flow import Answer, Flow, finished
from server.api.openai_errors import error_of
from server.api.openai_form import OpenAIForm
from server.api.openai_usage import Usage
from server.http.envelope import json_bytes
from server.images.encode import preview_file
from server.img2img.events import EVENT_STREAM, STREAM_HEADERS, EventStream, event
from server.img2img.service import Batch, FinishedImage


def stream_images(
    flow: Flow,
    batch: Batch,
    asked: OpenAIForm,
    name: str,
    usage: Usage,
    pack: Callable[[list[FinishedImage]], Answer],
) -> EventStream:
    """Stream `NAME.partial_image` events and a `NAME.completed` event for each image.

    Charged once all are there and before the first is sent; a failure is an `error` event.
    """

    async def events() -> AsyncGenerator[bytes]:
        try:
            working = asyncio.ensure_future(
                flow.finish_streamed(batch, asked.format, asked.compression)
            )
            try:
                async for index, preview in _partial_images(flow, batch, asked.partial_images):
                    write = partial(_partial_event, name, asked, preview, batch, index)
                    yield await flow.limit.apply(flow.service.in_thread(write))
                outcomes = await working
            finally:
                working.cancel()
            await flow.settle_streamed(batch, outcomes, pack)
            images = finished(outcomes)
            for image in images:
                credits = flow.admission.credits_told if image is images[-1] else None
                more = _completed(usage, image.seed, image.filtered, credits)
                # Not in a place for images: what is paid for does not wait behind others.
                yield await anyio.to_thread.run_sync(
                    partial(_event, f"{name}.completed", asked, image.file, **more)
                )
        except Exception as error:
            failure = await flow.failed(error)
            told = error_of(failure.status, failure.message)
            if failure.retry_after is not None:  # In the object, which is what clients hand on.
                told["retry_after"] = failure.retry_after
            yield event("error", json_bytes({"type": "error", "error": told}))

    return EventStream(batch, events())


def stream_kept(
    answer: Answer, asked: OpenAIForm, name: str, credits: Mapping[str, str] | None
) -> Response:
    """Stream the images of an answer that is there already."""
    body = json.loads(answer.body)
    images, usage = body["data"], Usage.told_in(body)
    events = [
        _written(
            f"{name}.completed",
            asked,
            item["b64_json"],
            **_completed(
                usage,
                item["seed"],
                item.get("filtered", False),
                credits if item is images[-1] else None,
            ),
        )
        for item in images
    ]
    headers = {**STREAM_HEADERS, **answer.headers}
    return Response(b"".join(events), media_type=EVENT_STREAM, headers=headers)


def _completed(
    usage: Usage, seed: int, filtered: bool, credits: Mapping[str, str] | None
) -> dict[str, Any]:
    """Return what the event of a finished image has beside it, as far as there is any of it."""
    told = {"usage": usage.told(1), "seed": seed, "filtered": filtered, "credits": credits}
    return {name: value for name, value in told.items() if value}


async def _partial_images(
    flow: Flow, batch: Batch, count: int
) -> AsyncGenerator[tuple[int, Pixels]]:
    """Yield up to ``count`` previews of the first image, evenly over its steps."""
    sent = 0
    updates = batch.running[0].handle.progress()
    while (progress := await flow.limit.apply(anext(updates, None))) is not None:
        if (
            sent < count
            and progress.preview is not None
            and _share(progress) >= (sent + 1) / (count + 1)
        ):
            yield sent, progress.preview
            sent += 1


def _share(progress: Progress) -> float:
    return progress.evaluation / max(1, progress.evaluations)


def _partial_event(
    name: str, asked: OpenAIForm, preview: Pixels, batch: Batch, index: int
) -> bytes:
    first = batch.plan.first
    file = preview_file(preview, asked.size or (first.width, first.height), asked.format)
    return _event(f"{name}.partial_image", asked, file, partial_image_index=index)


def _event(kind: str, asked: OpenAIForm, file: bytes, **more: Any) -> bytes:
    return _written(kind, asked, base64.b64encode(file).decode(), **more)


def _written(kind: str, asked: OpenAIForm, b64_json: str, **more: Any) -> bytes:
    width, height = asked.size or (0, 0)
    data = {
        "type": kind,
        "b64_json": b64_json,
        "created_at": int(time.time()),
        "size": f"{width}x{height}" if width else "auto",
        "quality": "auto",
        "background": "opaque",
        "output_format": asked.output_format,
        **more,
    }
    return event(kind, json_bytes(data))
