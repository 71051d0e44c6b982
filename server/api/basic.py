"""`POST /api/generate/basic/imageToImage`: a multipart form in, a picture in the envelope out."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.accounts.admission import (
    FILTERED_HEADER,
    SEED_HEADER,
    Admission,
    Admitted,
    fingerprint,
)
from server.api.accept import accepted_image_format
from server.api.flow import Answer, Flow, client_of
from server.api.runs import NamedRun, stream_run
from server.api.values import parts_of
from server.http.bytes_in_flight import release_upload
from server.http.envelope import image_body, image_response, with_member
from server.http.multipart import Part
from server.http.response_headers import response_headers
from server.http.waiting import within
from server.images.encode import ImageFormat
from server.img2img.events import stream_finished, stream_response, wants_events
from server.img2img.form import (
    FILE_FIELDS,
    IMAGE_FIELD,
    MASK_FIELD,
    TEXT_FIELDS,
    ImageResponse,
    failure_responses,
    form_request_body,
)
from server.img2img.service import Batch, Fields, FinishedImage, withdraw

PATH = "/api/generate/basic/imageToImage"
_AS_TEXT = "came as text; send it as a file, with a file name"
_SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"RIFF": "image/webp"}

router = APIRouter(tags=["image to image"])


@router.post(
    PATH,
    summary="Make a picture from a picture and a prompt",
    response_model=ImageResponse,
    responses=failure_responses(),
    openapi_extra={"requestBody": form_request_body()},
)
async def image_to_image(request: Request, admission: Admitted, run: NamedRun) -> Response:
    """Send a multipart form with `init_image` and `prompt`; all else may be left out.

    Answers `{"code": 0, "message": "success", "data": {"image": ..., "seed": ...}}`, or on failure
    `{"code": -1, "message": reason, "data": null}` with a true HTTP status.

    With `Accept: text/event-stream` the answer is a stream of server-sent events: `progress` while
    the picture is made, `{"step": 14, "steps": 30, "evaluation": 3, "evaluations": 19,
    "queue_position": 0}`, then one `result` with the answer. `step` counts the form's `steps`,
    those included that `image_strength` skips; `evaluation` counts the U-Net's evaluations, of
    which some samplers have two a step.

    Such a stream with an `X-Run-Id` goes on for a while if its connection is lost, and is found
    again at `/api/runs/{id}`; any other request ends with its connection.
    """
    flow = Flow(request, admission)
    parts = await parts_of(request, flow.limit, texts=frozenset(TEXT_FIELDS), files=FILE_FIELDS)
    format = accepted_image_format(request) or ImageFormat.PNG
    beginning = _begin(flow, parts, format)
    del parts  # The upload is held until its picture is decoded, and not while it is worked on.
    begun = await within(request, flow.limit, beginning, withdraw)
    release_upload(request.scope)
    if not isinstance(begun, Batch):
        return _replayed(request, admission, Answer.unpacked(begun))
    batch = begun
    flow.name_model()

    def pack(images: list[FinishedImage]) -> Answer:
        return Answer(_body(images[0]))

    async def settled_response() -> bytes:
        outcomes = await flow.finish_streamed(batch, format)
        charging = None if run is None else run.begin_charging
        answer = await flow.settle(batch, outcomes, pack, streamed=True, charging=charging)
        return _with_credits(admission, answer.body)

    if run is not None:
        return stream_run(flow, run, batch, settled_response)
    if wants_events(request):
        return stream_response(batch.running[0].handle, settled_response, flow.limit, flow.failed)
    outcomes = await flow.finish(batch, format)
    return _answer(request, (await flow.settle(batch, outcomes, pack)).body)


async def _begin(flow: Flow, parts: Mapping[str, Part], format: ImageFormat) -> Batch | bytes:
    """Check the form, reserve its price and hand it to the engine; or the kept answer to it."""
    # Under one key another type is another request. Of PNG the mark is that of versions before.
    asked_type = "" if format is ImageFormat.PNG else format.media_type
    mark = await anyio.to_thread.run_sync(fingerprint, parts, asked_type)
    if (kept := await flow.admission.kept_response(mark)) is not None:
        return kept
    client = client_of(flow.request, flow.admission)
    plan = await flow.service.prepare(_fields(parts), flow.model, client=client, limit=flow.limit)
    return await flow.submit(plan)


def _replayed(request: Request, admission: Admission, answer: Answer) -> Response:
    # It costs its sender nothing, so it is not made for one more who may not read it.
    request.app.state.byte_budget.check(len(answer.body))
    response_headers(request.scope).update(answer.headers)
    if wants_events(request):
        return stream_finished(_with_credits(admission, answer.body))
    return _answer(request, answer.body)


def _with_credits(admission: Admission, body: bytes) -> bytes:
    """Return a stream's answer with what the headers of another would say of credits."""
    credits = admission.credits_told
    return body if credits is None else with_member(body, "credits", credits)


def _answer(request: Request, body: bytes) -> Response:
    """Return the envelope, or the image alone where that is what Accept asks for."""
    if accepted_image_format(request) is None:
        return image_response(body)
    data = json.loads(body)["data"]
    file = base64.b64decode(data["image"])
    # By its bytes: one that a version before kept may be of another type than is asked for.
    media_type = next(kind for start, kind in _SIGNATURES.items() if file.startswith(start))
    headers = {SEED_HEADER: str(data["seed"]), "Cache-Control": "no-store"}
    if data.get("filtered"):
        headers[FILTERED_HEADER] = "true"
    return Response(file, headers=headers, media_type=media_type)


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
    elif upload is None or upload.is_left_out:
        unreadable[IMAGE_FIELD] = "is required"
    elif not upload.is_file:
        unreadable[IMAGE_FIELD] = _AS_TEXT
    mask = parts.get(MASK_FIELD)
    if mask is None or mask.is_left_out:
        mask = None
    elif mask.problem or not mask.is_file:
        unreadable[MASK_FIELD] = mask.problem or _AS_TEXT
        mask = None
    taken = None if upload is None or IMAGE_FIELD in unreadable else upload.data
    return Fields(texts, taken, unreadable, None if mask is None else mask.data)


def _body(image: FinishedImage) -> bytes:
    return image_body(base64.b64encode(image.file), image.seed, image.filtered)
