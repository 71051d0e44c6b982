"""`POST /api/generate/basic/imageToImage`: a multipart form in, a picture in the envelope out."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from pipelines.errors import (
    DeadlineExceeded,
    EngineDead,
    EngineRefused,
    GenerationCancelled,
    GenerationFailed,
)
from pipelines.request import GenerationRequest, GenerationResult, Pixels
from server.admission import Admitted
from server.deny_list import DenyList
from server.engine_host import EngineHost, Handle, LoadedModel
from server.envelope import (
    BadRequest,
    DeadlineExpired,
    InternalError,
    Unavailable,
    picture_body,
    picture_response,
)
from server.event_stream import stream_answer, stream_response, wants_events
from server.finishing import finish
from server.generation import generation_request, refusals
from server.images import PictureError, decode_picture, prepare_picture
from server.multipart import Part, read_form
from server.price import price
from server.safety import PictureWithheld
from server.schemas import (
    FORM_FIELDS,
    IMAGE_FIELD,
    TEXT_FIELDS,
    ImageToImageForm,
    PictureAnswer,
    failure_responses,
    form_request_body,
    parse_form,
)
from server.settings import Settings

PATH = "/api/generate/basic/imageToImage"
_NOT_READY_RETRY_AFTER = 5.0

logger = logging.getLogger(__name__)
router = APIRouter(tags=["image to image"])
T = TypeVar("T")
P = ParamSpec("P")


@router.post(
    PATH,
    summary="Make a picture from a picture and a prompt",
    response_model=PictureAnswer,
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
    parts = await _read_parts(request, settings)
    if (kept := await admission.kept_answer(parts)) is not None:
        return _replayed(request, kept)
    form, picture = await _check_parts(request, parts, model)
    # A preview is not checked, so where pictures are, none is shown.
    generation = generation_request(form, picture, previews=model.safety is None)
    cost = price(generation.width, generation.height, form.steps)
    if (kept := await admission.reserve(cost)) is not None:
        return _replayed(request, kept)
    handle = await _submit(model, generation, settings.request_timeout)

    async def answer() -> bytes:
        result = await _result(handle, settings.request_timeout)
        try:
            return await _in_thread(request, lambda: _encode_answer(result, generation, model))
        except PictureWithheld as error:
            raise BadRequest(str(error)) from None

    async def settled_answer() -> bytes:
        body = await answer()
        await admission.settle(body)
        return body

    if wants_events(request):
        return stream_response(handle, settled_answer)
    body = await _answer_unless_client_leaves(request, handle, answer)
    # Not before: from here on the picture is paid for, and the client may have left a moment ago.
    await admission.settle(body)
    return picture_response(body)


def _replayed(request: Request, body: bytes) -> Response:
    return stream_answer(body) if wants_events(request) else picture_response(body)


def _model_in_service(host: EngineHost) -> LoadedModel:
    model = host.serving_model
    if model is None:
        raise Unavailable(host.obstacle, _NOT_READY_RETRY_AFTER)
    return model


async def _read_parts(request: Request, settings: Settings) -> dict[str, Part]:
    try:
        async with asyncio.timeout(settings.request_timeout):
            async with aclosing(request.stream()) as stream:
                return await read_form(
                    request.headers.get("content-type"),
                    stream,
                    wanted=FORM_FIELDS,
                    file_fields=frozenset({IMAGE_FIELD}),
                    max_file_bytes=settings.max_upload_bytes,
                )
    except TimeoutError:
        seconds = f"{settings.request_timeout:g}"
        raise DeadlineExpired(f"the upload was not complete within {seconds} s") from None


async def _check_parts(
    request: Request, parts: Mapping[str, Part], model: LoadedModel
) -> tuple[ImageToImageForm, Pixels]:
    """The form and the picture at the size to make, or BadRequest with all that is wrong."""
    misplaced = [name for name in TEXT_FIELDS if name in parts and parts[name].is_file]
    texts = {
        name: parts[name].text for name in TEXT_FIELDS if name in parts and name not in misplaced
    }
    form, problems = parse_form(texts)
    if form is not None:
        problems = await _in_text_thread(_refusals, request, form, model)
    if misplaced:
        # A field that came as a file is not also reported as missing.
        problems = [line for line in problems if line.split(":")[0] not in misplaced]
        problems += [f"{name}: came as a file; send it as text" for name in misplaced]
    picture: Pixels | None = None
    upload = parts.get(IMAGE_FIELD)
    if upload is None or upload.is_absent_file or not (upload.is_file or upload.text.strip()):
        problems.insert(0, f"{IMAGE_FIELD}: is required")
    elif not upload.is_file:
        problems.insert(0, f"{IMAGE_FIELD}: came as text; send it as a file, with a file name")
    else:
        sizes = request.app.state.settings.auto_picture_sizes
        try:
            picture = await _in_thread(request, lambda: _read_picture(upload.data, form, sizes))
        except PictureError as error:
            problems.insert(0, str(error))
    if problems or form is None or picture is None:
        raise BadRequest("; ".join(problems))
    return form, picture


def _read_picture(
    data: bytearray, form: ImageToImageForm | None, auto_sizes: Sequence[tuple[int, int]]
) -> Pixels | None:
    if form is None:
        decode_picture(data)  # Only to report what is wrong with it beside the rest.
        return None
    return prepare_picture(data, form.width, form.height, form.resize_mode, auto_sizes)


def _refusals(request: Request, form: ImageToImageForm, model: LoadedModel) -> list[str]:
    state = request.app.state
    deny_list: DenyList = state.deny_list
    return refusals(form, model, deny_list, state.settings.max_breaks)


async def _submit(model: LoadedModel, generation: GenerationRequest, timeout: float) -> Handle:
    submission = asyncio.ensure_future(_in_text_thread(model.engine.submit, generation, timeout))
    try:
        return await asyncio.shield(submission)
    except EngineRefused as error:
        raise Unavailable(str(error), error.retry_after) from None
    except asyncio.CancelledError:
        submission.add_done_callback(_withdraw)
        raise


def _withdraw(submission: asyncio.Future[Handle]) -> None:
    """Cancel what was submitted for a request that is gone."""
    if not submission.cancelled() and submission.exception() is None:
        submission.result().cancel()


async def _answer_unless_client_leaves(
    request: Request, handle: Handle, answer: Callable[[], Coroutine[Any, Any, bytes]]
) -> bytes:
    """The answer. If the client leaves first, withdraws the work and raises ClientDisconnect."""
    finished = asyncio.ensure_future(answer())
    gone = asyncio.ensure_future(_client_gone(request))
    try:
        await asyncio.wait((finished, gone), return_when=asyncio.FIRST_COMPLETED)
        if not finished.done():
            raise ClientDisconnect
        return finished.result()
    finally:
        if not finished.done():
            handle.cancel()
        for task in (finished, gone):
            task.cancel()
        await asyncio.gather(finished, gone, return_exceptions=True)


async def _result(handle: Handle, timeout: float) -> GenerationResult:
    """The picture, or the ApiError that says why there is none."""
    try:
        return await handle.result()
    except EngineDead:
        logger.exception("the engine died under a request")
        raise InternalError from None
    except EngineRefused as error:
        raise Unavailable(str(error), error.retry_after) from None
    except DeadlineExceeded:
        raise DeadlineExpired(f"the picture was not finished within {timeout:g} s") from None
    except GenerationCancelled:
        raise Unavailable("the request was withdrawn", _NOT_READY_RETRY_AFTER) from None
    except GenerationFailed:
        logger.exception("the generation failed")
        raise InternalError from None


async def _client_gone(request: Request) -> None:
    """Returns once the client has closed the connection. Call after the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _encode_answer(
    result: GenerationResult, generation: GenerationRequest, model: LoadedModel
) -> bytes:
    finished = finish(result, generation, model)
    return picture_body(base64.b64encode(finished.png), finished.seed, finished.filtered)


async def _in_text_thread(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do what reads texts off the event loop, and not behind pictures, which take far longer."""
    return await anyio.to_thread.run_sync(partial(work, *arguments, **named))


async def _in_thread(request: Request, work: Callable[[], T]) -> T:
    limiter: anyio.CapacityLimiter = request.app.state.picture_limiter
    return await anyio.to_thread.run_sync(work, limiter=limiter)
