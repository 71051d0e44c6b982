"""`POST /api/generate/basic/imageToImage`: a multipart form in, a picture in the envelope out."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.accounts.access import ANYONE
from server.accounts.admission import Admission, Admitted
from server.accounts.guesses import source_of
from server.accounts.pricing import price
from server.engine_service import EngineHost, LoadedModel
from server.http.bytes_in_flight import release_upload
from server.http.envelope import image_body, image_response
from server.http.errors import DeadlineExpired, Unavailable
from server.http.ignored_fields import IgnoredFields
from server.http.multipart import Part, read_form, refuse_encoded_body
from server.http.response_headers import response_headers
from server.http.waiting import TimeLimit, within
from server.img2img.events import stream_finished, stream_response, wants_events
from server.img2img.form import (
    FORM_FIELDS,
    IMAGE_FIELD,
    TEXT_FIELDS,
    ImageResponse,
    failure_responses,
    form_request_body,
)
from server.img2img.service import Fields, FinishedImage, ImageToImage, Running, withdraw
from server.settings import Settings

PATH = "/api/generate/basic/imageToImage"
_NOT_READY_RETRY_AFTER = 5.0

router = APIRouter(tags=["image to image"])


@router.post(
    PATH,
    summary="Make a picture from a picture and a prompt",
    response_model=ImageResponse,
    responses=failure_responses(),
    openapi_extra={"requestBody": form_request_body()},
)
async def image_to_image(request: Request, admission: Admitted) -> Response:
    """Send a multipart form with `init_image` and `prompt`; all else may be left out.

    Answers `{"code": 0, "message": "success", "data": {"image": ..., "seed": ...}}`, or on failure
    `{"code": -1, "message": reason, "data": null}` with a true HTTP status.

    With `Accept: text/event-stream` the answer is a stream of server-sent events: `progress` while
    the picture is made, `{"step": 14, "steps": 30, "evaluation": 3, "evaluations": 19,
    "queue_position": 0}`, then one `result` with the answer. `step` counts the form's `steps`,
    those included that `image_strength` skips; `evaluation` counts the U-Net's evaluations, of
    which some samplers have two a step.
    """
    settings: Settings = request.app.state.settings
    # Before the body is read: a server that cannot serve should not take an upload.
    model = _model_in_service(request.app.state.engine_host)
    limit = TimeLimit.of(request.scope, settings.request_timeout)
    parts = await _read_parts(request, settings, limit)
    service: ImageToImage = request.app.state.service
    beginning = _begin(request, admission, service, model, parts, limit)
    del parts  # The upload is held until its picture is decoded, and not while it is worked on.
    begun = await within(request, limit, beginning, withdraw)
    release_upload(request.scope)
    if not isinstance(begun, Running):
        return _replayed(request, begun)
    running = begun

    async def settled_response() -> bytes:
        body = await limit.apply(service.finish(running, _body))
        await admission.settle(body)
        return body

    if wants_events(request):
        return stream_response(running.handle, settled_response, limit)
    try:
        body = await within(request, limit, service.finish(running, _body))
    except BaseException:
        running.handle.cancel()
        raise
    # Not before: from here on the picture is paid for, and the client may have left a moment ago.
    await admission.settle(body)
    return image_response(body)


async def _begin(
    request: Request,
    admission: Admitted,
    service: ImageToImage,
    model: LoadedModel,
    parts: Mapping[str, Part],
    limit: TimeLimit,
) -> Running | bytes:
    """Check the form, reserve its price and hand it to the engine; or the kept answer to it."""
    if (kept := await admission.kept_response(parts)) is not None:
        return kept
    client = _client(request, admission)
    generation = await service.prepare(_fields(parts), model, client=client, limit=limit)
    cost = price(generation.width, generation.height, generation.steps)
    if (kept := await admission.reserve(cost)) is not None:
        return kept
    return await service.run(generation, model, limit)


def _replayed(request: Request, body: bytes) -> Response:
    # It costs its sender nothing, so it is not made for one more who may not read it.
    request.app.state.byte_budget.check(len(body))
    return stream_finished(body) if wants_events(request) else image_response(body)


def _model_in_service(host: EngineHost) -> LoadedModel:
    model = host.serving_model
    if model is None:
        raise Unavailable(host.obstacle, _NOT_READY_RETRY_AFTER)
    return model


async def _read_parts(request: Request, settings: Settings, limit: TimeLimit) -> dict[str, Part]:
    refuse_encoded_body(request.headers.getlist("content-encoding"))
    ignored = IgnoredFields(response_headers(request.scope))
    try:
        async with asyncio.timeout(limit.remaining):
            async with aclosing(request.stream()) as stream:
                return await read_form(
                    request.headers.get("content-type"),
                    stream,
                    wanted=FORM_FIELDS,
                    file_fields=frozenset({IMAGE_FIELD}),
                    max_file_bytes=settings.max_upload_bytes,
                    on_unknown=ignored.add,
                )
    except TimeoutError:
        raise DeadlineExpired(f"the upload was not complete within {limit.seconds:g} s") from None


def _fields(parts: Mapping[str, Part]) -> Fields:
    """Read the form's fields as texts and bytes, and say of the others why they are neither."""
    unreadable = {
        name: "came as a file; send it as text" if part.is_file else part.problem
        for name in TEXT_FIELDS
        if (part := parts.get(name)) is not None and (part.is_file or part.problem)
    }
    texts = {
        name: parts[name].text for name in TEXT_FIELDS if name in parts and name not in unreadable
    }
    upload = parts.get(IMAGE_FIELD)
    if upload is not None and upload.problem:
        unreadable[IMAGE_FIELD] = upload.problem
    elif upload is None or upload.is_absent_file or not (upload.is_file or upload.data.strip()):
        unreadable[IMAGE_FIELD] = "is required"
    elif not upload.is_file:
        unreadable[IMAGE_FIELD] = "came as text; send it as a file, with a file name"
    else:
        return Fields(texts, upload.data, unreadable)
    return Fields(texts, None, unreadable)


def _client(request: Request, admission: Admission) -> str:
    """Return the client that takes turns: a key, wherever it is used; without one a network."""
    if admission.identity != ANYONE.identity:
        return admission.identity
    source = source_of(request.client.host if request.client else "")
    return f"{ANYONE.identity} {source.network or source.address}"


def _body(image: FinishedImage) -> bytes:
    return image_body(base64.b64encode(image.file), image.seed, image.filtered)
