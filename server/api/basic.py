"""`POST /api/generate/basic/imageToImage`: a multipart form in, a picture in the envelope out."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from pipelines.errors import EngineDead, GenerationFailed
from pipelines.request import GenerationRequest, GenerationResult, Pixels
from server.accounts.access import ANYONE
from server.accounts.admission import Admission, Admitted
from server.accounts.guesses import source_of
from server.accounts.pricing import price
from server.engine_service import EngineHost, Handle, LoadedModel
from server.errors import ImageError
from server.http.bytes_in_flight import release_upload
from server.http.envelope import image_body, image_response
from server.http.errors import BadRequest, DeadlineExpired, Unavailable
from server.http.ignored_fields import IgnoredFields
from server.http.multipart import Part, read_form, refuse_encoded_body
from server.http.response_headers import response_headers
from server.http.waiting import TimeLimit, within
from server.images.workers.pool import DecoderPool
from server.images.workers.process import Fit
from server.img2img.deny_list import DenyList
from server.img2img.events import stream_finished, stream_response, wants_events
from server.img2img.finishing import finish
from server.img2img.form import (
    FORM_FIELDS,
    IMAGE_FIELD,
    TEXT_FIELDS,
    ImageResponse,
    ImageToImageForm,
    failure_responses,
    form_request_body,
    parse_form,
)
from server.img2img.generation import generation_request, refusals
from server.settings import Settings

PATH = "/api/generate/basic/imageToImage"
_NOT_READY_RETRY_AFTER = 5.0
_TIME_TO_SAY_SO = 0.05

router = APIRouter(tags=["image to image"])
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class _Running:
    """What the engine was asked, and the handle of it."""

    generation: GenerationRequest
    handle: Handle


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
    """
    settings: Settings = request.app.state.settings
    # Before the body is read: a server that cannot serve should not take an upload.
    model = _model_in_service(request.app.state.engine_host)
    limit = TimeLimit.of(request.scope, settings.request_timeout)
    parts = await _read_parts(request, settings, limit)
    beginning = _begin(request, admission, model, parts, limit)
    del parts  # The upload is held until its picture is decoded, and not while it is worked on.
    begun = await within(request, limit, beginning, _withdraw)
    release_upload(request.scope)
    if not isinstance(begun, _Running):
        return _replayed(request, begun)
    running = begun

    async def settled_response() -> bytes:
        body = await limit.apply(_answer(request, model, running, limit))
        await admission.settle(body)
        return body

    if wants_events(request):
        return stream_response(running.handle, settled_response, limit)
    try:
        body = await within(request, limit, _answer(request, model, running, limit))
    except BaseException:
        running.handle.cancel()
        raise
    # Not before: from here on the picture is paid for, and the client may have left a moment ago.
    await admission.settle(body)
    return image_response(body)


async def _begin(
    request: Request,
    admission: Admitted,
    model: LoadedModel,
    parts: Mapping[str, Part],
    limit: TimeLimit,
) -> _Running | bytes:
    """Check the form, reserve its price and hand it to the engine; or the kept answer to it."""
    if (kept := await admission.kept_response(parts)) is not None:
        return kept
    form, picture = await _check_parts(request, admission, parts, model, limit)
    # A preview is not checked, so where pictures are, none is shown.
    generation = generation_request(form, picture, previews=model.safety is None)
    cost = price(generation.width, generation.height, form.steps)
    if (kept := await admission.reserve(cost)) is not None:
        return kept
    return await _submit(model, generation, limit)


async def _answer(
    request: Request, model: LoadedModel, running: _Running, limit: TimeLimit
) -> bytes:
    result = await _result(running.handle)
    return await _in_thread(request, lambda: _encode_response(result, running.generation, model))


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


async def _check_parts(
    request: Request,
    admission: Admission,
    parts: Mapping[str, Part],
    model: LoadedModel,
    limit: TimeLimit,
) -> tuple[ImageToImageForm, Pixels]:
    """The form and the picture at the size to make, or BadRequest with all that is wrong."""
    unreadable = {
        name: "came as a file; send it as text" if part.is_file else part.problem
        for name in TEXT_FIELDS
        if (part := parts.get(name)) is not None and (part.is_file or part.problem)
    }
    texts = {
        name: parts[name].text for name in TEXT_FIELDS if name in parts and name not in unreadable
    }
    form, problems = parse_form(texts)
    if form is not None:
        problems = await _in_text_thread(_refusals, request, form, model)
    if unreadable:
        # A field that came, but cannot be read, is not also reported as missing.
        problems = [line for line in problems if line.split(":")[0] not in unreadable]
        problems += [f"{name}: {reason}" for name, reason in unreadable.items()]
    picture: Pixels | None = None
    upload = parts.get(IMAGE_FIELD)
    if upload is not None and upload.problem:
        problems.insert(0, f"{IMAGE_FIELD}: {upload.problem}")
    elif upload is None or upload.is_absent_file or not (upload.is_file or upload.data.strip()):
        problems.insert(0, f"{IMAGE_FIELD}: is required")
    elif not upload.is_file:
        problems.insert(0, f"{IMAGE_FIELD}: came as text; send it as a file, with a file name")
    else:
        try:
            picture = await _decode(request, admission, upload.data, form, limit)
        except ImageError as error:
            problems.insert(0, str(error))
    if problems or form is None or picture is None:
        raise BadRequest("; ".join(problems))
    return form, picture


async def _decode(
    request: Request,
    admission: Admission,
    data: bytearray,
    form: ImageToImageForm | None,
    limit: TimeLimit,
) -> Pixels | None:
    """The picture at the size to make; without a form None, if nothing is wrong with it."""
    settings: Settings = request.app.state.settings
    decoders: DecoderPool = request.app.state.decoders
    fit = None
    if form is not None:  # Without one, only to report what is wrong beside the rest.
        fit = Fit(form.width, form.height, form.resize_mode, settings.auto_picture_sizes)
    client = _client(request, admission)
    # Before the request's own end, which would not say what took so long.
    deadline = limit.deadline - _TIME_TO_SAY_SO
    return await decoders.decode(data, fit, deadline=deadline, client=client)


def _client(request: Request, admission: Admission) -> str:
    """Return the client that takes turns: a key, wherever it is used; without one a network."""
    if admission.identity != ANYONE.identity:
        return admission.identity
    source = source_of(request.client.host if request.client else "")
    return f"{ANYONE.identity} {source.network or source.address}"


def _refusals(request: Request, form: ImageToImageForm, model: LoadedModel) -> list[str]:
    state = request.app.state
    deny_list: DenyList = state.deny_list
    return refusals(form, model, deny_list, state.settings.max_breaks)


async def _submit(model: LoadedModel, generation: GenerationRequest, limit: TimeLimit) -> _Running:
    def submit() -> _Running:
        submitted = model.engine.submit(generation, timeout=limit.seconds, arrived=limit.arrived)
        return _Running(generation, submitted)

    submission = asyncio.ensure_future(_in_text_thread(submit))
    try:
        return await asyncio.shield(submission)
    except asyncio.CancelledError:
        submission.add_done_callback(_withdraw)
        raise


def _withdraw(beginning: asyncio.Future[_Running | bytes] | asyncio.Future[_Running]) -> None:
    """Cancel what was submitted for a request that is gone."""
    if beginning.cancelled() or beginning.exception() is not None:
        return
    if isinstance(begun := beginning.result(), _Running):
        begun.handle.cancel()


async def _result(handle: Handle) -> GenerationResult:
    """Return the image. Raises any GenerationError."""
    try:
        return await handle.result()
    except EngineDead as error:
        # One that died with the request in it is a fault of ours, not one to ask again.
        raise GenerationFailed(f"the engine died under a request: {error}") from error


def _encode_response(
    result: GenerationResult, generation: GenerationRequest, model: LoadedModel
) -> bytes:
    finished = finish(result, generation, model)
    return image_body(base64.b64encode(finished.file), finished.seed, finished.filtered)


async def _in_text_thread(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do what reads texts off the event loop, and not behind pictures, which take far longer."""
    return await anyio.to_thread.run_sync(partial(work, *arguments, **named))


async def _in_thread(request: Request, work: Callable[[], T]) -> T:
    limiter: anyio.CapacityLimiter = request.app.state.picture_limiter
    place = object()
    await limiter.acquire_on_behalf_of(place)
    # A task of its own: who waits may leave, but the place is taken until the thread has ended.
    thread = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1)))

    def ended(_: object) -> None:
        limiter.release_on_behalf_of(place)
        if not thread.cancelled():
            thread.exception()  # that nobody may be left to hear of

    thread.add_done_callback(ended)
    await asyncio.wait((thread,))
    return thread.result()
