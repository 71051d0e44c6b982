"""OpenAI's image API: `/v1/images/edits`, `/v1/images/generations`, `/v1/models`."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from pipelines.request import MAX_SEED
from server.accounts.admission import Admitted
from server.accounts.auth import AnyCaller
from server.api.flow import Answer, Flow, model_in_service
from server.api.openai_files import Addresses
from server.api.openai_form import ALIASES, TEXT_FIELDS, OpenAIForm
from server.api.openai_stream import stream_images, stream_kept
from server.api.openai_usage import Usage
from server.api.values import Form, Problems, form_of, form_of_json, json_of, name_ignored, parsed
from server.errors import InvalidInput
from server.http.envelope import json_bytes, json_response
from server.http.errors import NotFound
from server.http.failure_shapes import name_fields
from server.http.json_body import decode_image_text
from server.http.waiting import within
from server.images.masks import MaskOptions, MaskReads
from server.img2img.events import may_stream
from server.img2img.images_request import ImagesRequest
from server.img2img.service import FinishedImage

_BASES = (
    "/v1",
    "/v1/deployments/{deployment:path}",
    "/openai/v1",
    "/openai/deployments/{deployment:path}",
)
"""What stands before `/images`: below the first for all, below the others for Azure's clients."""
_FILES_IN_FORMS = frozenset(("image", "image[]", "mask", "mask[]"))
_OUR_NAMES = {"init_image": "image", "width": "size", "height": "size"}
"""Fields that failures name by the API's own names."""
_MASKED_STRENGTH = 0.0
"""image_strength under a mask, where none is sent: what was erased should not shine through."""
_STRENGTH = 0.35

_OWN_MASK_MODEL = "dall-e-2"
"""Of edits by this model OpenAI says that an image's transparent pixels are its mask where none is
sent. Clients of others send images whose background is merely transparent."""

Handler = Callable[..., Awaitable[Response]]

router = APIRouter(include_in_schema=False)


def _at_every_base(path: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        for base in _BASES:
            router.post(base + path)(handler)
        return handler

    return add


@_at_every_base("/images/edits")
async def edits(request: Request, admission: Admitted) -> Response:
    """Edit an image: a multipart form, or JSON with data URLs."""
    name_fields(request.scope, _OUR_NAMES)
    flow = Flow(request, admission)
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        form = await form_of(
            request,
            flow.limit,
            texts=TEXT_FIELDS,
            files=_FILES_IN_FORMS,
            keep_first=_FILES_IN_FORMS,
        )
    else:
        form = await _json_form(request, flow)
    twice = [f"{name}[]" for name in ("image", "mask") if form.has(name)]
    form = form.without(request, *twice)
    image = form.files.get("image") or form.files.get("image[]")
    mask = form.files.get("mask") or form.files.get("mask[]")
    own_mask = mask is None and form.text("model") == _OWN_MASK_MODEL
    problems = Problems()
    with problems.gathered():
        asked = _form(request, flow, form, names_model=own_mask)
    with problems.gathered():
        if image is None and not form.has("image[]"):  # which cannot be read
            raise InvalidInput(["image: is required"])
    problems.check()
    masked_strength = _MASKED_STRENGTH if asked.image_strength is None else asked.image_strength
    strength = _STRENGTH if asked.image_strength is None else asked.image_strength
    images = _images_request(
        asked,
        upload=image,
        image_field=form.paths.get("image", "image"),
        mask=None
        if mask is None
        else MaskOptions(mask, MaskReads.TRANSPARENT, field=form.paths.get("mask", "mask")),
        image_strength=strength if mask is None else masked_strength,
        own_mask_strength=masked_strength if own_mask else None,
    )
    answering = _respond(request, flow, asked, images, form.fingerprint, "image_edit")
    del form, image, mask, images
    return await answering


@_at_every_base("/images/generations")
async def generations(request: Request, admission: Admitted) -> Response:
    """Make images from noise."""
    name_fields(request.scope, _OUR_NAMES)
    flow = Flow(request, admission)
    body = await json_of(request, flow.limit)
    name_ignored(request, _without_effect(body.fields, TEXT_FIELDS))
    form = form_of_json(body, TEXT_FIELDS).without(request, "image_strength")
    asked = _form(request, flow, form)
    images = _images_request(asked)
    answering = _respond(request, flow, asked, images, form.fingerprint, "image_generation")
    del body, form
    return await answering


@router.get("/v1/models")
async def models(request: Request, caller: AnyCaller) -> Response:
    """List the one model that is served."""
    return json_response({"object": "list", "data": [_model(request)]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, caller: AnyCaller, name: str) -> Response:
    """Describe the model, if it is the one."""
    found = _model(request)
    if found["id"] != name:
        raise NotFound(f"model: {name[:60]} is not served here; {found['id']} is")
    return json_response(found)


async def _json_form(request: Request, flow: Flow) -> Form:
    """Return the form in a JSON body: of `image` and `images`, and of `mask`, the first counts."""
    body = await json_of(request, flow.limit)
    fields = body.fields
    images = [found for name in ("image", "images") for found in _images_in(name, fields.get(name))]
    masks = _images_in("mask", fields.get("mask"))
    ignored = _without_effect(fields, TEXT_FIELDS.union(("image", "images", "mask")))
    name_ignored(request, [*ignored, *(path for path, _ in (*images[1:], *masks[1:]))])
    firsts = {name: found[0] for name, found in (("image", images), ("mask", masks)) if found}
    most = flow.request.app.state.settings.max_upload_bytes

    def decode() -> dict[str, bytes | bytearray]:
        return {name: decode_image_text(*found, most) for name, found in firsts.items()}

    files = await anyio.to_thread.run_sync(decode)
    paths = {name: path for name, (path, _) in firsts.items()}
    return replace(form_of_json(body, TEXT_FIELDS), files=files, paths=paths)


def _without_effect(fields: Mapping[str, Any], taken: frozenset[str]) -> list[str]:
    return [name for name, value in fields.items() if name not in taken and value not in (None, "")]


def _images_in(path: str, value: Any) -> list[tuple[str, Any]]:
    """Return the images in a value, each with the path to it in the body.

    They are texts, `{"image_url": text}` or `{"image_url": {"url": text}}`. Raises InvalidInput for
    an object without an image: what it means must not pass unnoticed.
    """
    if isinstance(value, list):
        return [
            found
            for index, item in enumerate(value)
            for found in _images_in(f"{path}[{index}]", item)
        ]
    if isinstance(value, dict):
        keys = [key for key in ("image_url", "url") if key in value]
        key = next((key for key in keys if value[key]), None)
        images = [] if key is None else _images_in(f"{path}.{key}", value[key])
        if not images:
            names = ", ".join(value)[:60]
            fault = f"{key or keys[0]} is empty" if keys else f"{{{names}}} has no image_url"
            raise InvalidInput([f"{path}: {fault}; send a data URL in it"])
        return images
    return [] if value is None or value == "" else [(path, value)]


def _form(request: Request, flow: Flow, form: Form, *, names_model: bool = False) -> OpenAIForm:
    names = dict(_OUR_NAMES)
    for alias, name in ALIASES.items():
        if form.has(name):
            form = form.without(request, alias)
        elif text := form.texts.pop(alias, ""):
            form.texts[name] = text
            names[name] = alias
    name_fields(request.scope, names)
    unused = _unused(form, may_stream(request))
    if not names_model and form.text("model") != flow.model.name:
        unused.append("model")
    return parsed(OpenAIForm, form.without(request, *unused))


def _unused(form: Form, streams: bool) -> list[str]:
    """Return the fields that others, or the protocol, leave without effect, as they were sent."""
    asks = form.text("stream").lower() in ("true", "1")
    unused = ["stream"] if asks and not streams else []
    if unused or not asks:
        unused.append("partial_images")
    elif form.text("response_format") != "b64_json":
        unused.append("response_format")
    if form.text("output_format") in ("", "png"):
        unused.append("output_compression")
    return unused


def _images_request(asked: OpenAIForm, **more: Any) -> ImagesRequest:
    return ImagesRequest(
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        styles=() if asked.style_preset is None else (asked.style_preset,),
        cfg_scale=asked.cfg_scale,
        sampler=asked.sampler.sampler,
        schedule=asked.sampler.schedule,
        steps=asked.steps,
        seed=asked.seed or 1 + secrets.randbelow(MAX_SEED),
        count=asked.n,
        previews=asked.stream and asked.partial_images > 0,
        count_field="n, size",
        **asked.sizes,
        **more,
    )


async def _respond(
    request: Request,
    flow: Flow,
    asked: OpenAIForm,
    images: ImagesRequest,
    fingerprint: str,
    event: str,
) -> Response:
    by_address = asked.response_format == "url" and not asked.stream
    # A store that is away should be known before the work.
    addresses = await within(request, flow.limit, Addresses.of(request)) if by_address else None

    def pack(usage: Usage, finished: list[FinishedImage]) -> Answer:
        made = [_datum(image) for image in finished]
        body = {
            "created": int(time.time()),
            "data": made,
            "background": "opaque",
            "output_format": asked.output_format,
            "usage": usage.told(len(made)),
        }
        if asked.size is not None:
            body["size"] = f"{asked.size[0]}x{asked.size[1]}"
        return Answer(json_bytes(body))

    beginning = flow.begin(images, fingerprint)
    del images
    begun = await beginning
    if isinstance(begun, Answer):
        if asked.stream:
            told = flow.admission.credits_told
            return await anyio.to_thread.run_sync(stream_kept, begun, asked, event, told)
        answer = begun
    else:
        usage = Usage.of(f"{asked.prompt} {asked.negative_prompt}", begun.plan.first)
        packing = partial(pack, usage)
        if asked.stream:
            flow.name_model()
            return stream_images(flow, begun, asked, event, usage, packing)
        outcomes = await flow.finish(begun, asked.format, asked.compression)
        answer = await flow.settle(begun, outcomes, packing)
    # What is kept for an Idempotency-Key has the images themselves: an address ends before it.
    return (answer if addresses is None else await addresses.instead_of_images(answer)).response()


def _datum(image: FinishedImage) -> dict[str, Any]:
    datum = {"b64_json": base64.b64encode(image.file).decode(), "seed": image.seed}
    return datum | ({"filtered": True} if image.filtered else {})


def _model(request: Request) -> dict[str, Any]:
    return {
        "id": model_in_service(request).name,
        "object": "model",
        "created": 0,
        "owned_by": "img2img-server",
    }
