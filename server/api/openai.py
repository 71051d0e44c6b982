"""OpenAI's image API: `/v1/images/edits`, `/v1/images/generations`, `/v1/models`."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from pipelines.request import MAX_SEED
from server.accounts.access import Caller
from server.accounts.admission import Admitted
from server.accounts.auth import require_key
from server.api.flow import Answer, Flow
from server.api.openai_form import ALIASES, KNOWN_TEXTS, WITHOUT_EFFECT, OpenAIForm
from server.api.openai_stream import stream_images
from server.api.values import Form, form_of, json_of, name_ignored, parsed, texts_of
from server.engine_service import EngineHost
from server.errors import InvalidInput
from server.http.errors import NotFound, Unavailable
from server.http.failure_shapes import name_fields
from server.http.json_body import decode_image_text
from server.images.masks import MaskOptions, MaskReads
from server.img2img.image_store import KEEP_SECONDS, ImageStore, signature
from server.img2img.images_request import ImagesRequest
from server.img2img.service import FinishedImage

EDITS = "/v1/images/edits"
GENERATIONS = "/v1/images/generations"
FILES = "/v1/images/files"
_FILES_IN_FORMS = frozenset(("image", "image[]", "mask"))
_MASKED_STRENGTH = 0.0
"""image_strength under a mask, where none is sent: what was erased should not shine through."""
_STRENGTH = 0.35

router = APIRouter(include_in_schema=False)
AnyCaller = Annotated[Caller, Depends(require_key)]


@router.post(EDITS)
async def edits(request: Request, admission: Admitted) -> Response:
    """Edit an image: a multipart form, or JSON with data URLs."""
    name_fields(request.scope, {"init_image": "image"})
    flow = Flow(request, admission)
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        form = await form_of(
            request,
            flow.limit,
            texts=KNOWN_TEXTS,
            files=_FILES_IN_FORMS,
            keep_first=frozenset(("image[]", "image")),
        )
    else:
        form = await _json_form(request, flow)
    image = form.files.get("image") or form.files.get("image[]")
    if "image" in form.files and "image[]" in form.files:
        name_ignored(request, ["image[]"])
    asked = _form(request, flow, form)
    if image is None:
        raise InvalidInput(["image: is required"])
    mask = form.files.get("mask")
    strength = _STRENGTH if mask is None else _MASKED_STRENGTH
    images = _images_request(
        asked,
        upload=image,
        mask=None if mask is None else MaskOptions(mask, MaskReads.TRANSPARENT),
        image_strength=strength if asked.image_strength is None else asked.image_strength,
    )
    return await _respond(request, flow, asked, images, form.fingerprint, "image_edit")


@router.post(GENERATIONS)
async def generations(request: Request, admission: Admitted) -> Response:
    """Make images from noise."""
    flow = Flow(request, admission)
    body = await json_of(request, flow.limit)
    form = Form(texts_of(body.fields, KNOWN_TEXTS), {}, body.fingerprint)
    name_ignored(request, [name for name in body.fields if name not in KNOWN_TEXTS])
    if body.fields.get("image_strength") is not None:
        name_ignored(request, ["image_strength"])
    asked = _form(request, flow, form)
    images = _images_request(asked)
    return await _respond(request, flow, asked, images, form.fingerprint, "image_generation")


@router.get("/v1/models")
async def models(request: Request, caller: AnyCaller) -> Response:
    """List the one model that is served."""
    return _json({"object": "list", "data": [_model(request)]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, caller: AnyCaller, name: str) -> Response:
    """Describe the model, if it is the one."""
    found = _model(request)
    if found["id"] != name:
        raise NotFound(f"model: {name[:60]} is not served here; {found['id']} is")
    return _json(found)


@router.get(FILES + "/{name}")
async def file(request: Request, name: str, expires: int = 0, signature: str = "") -> Response:
    """Return an image that was answered by its address; the signature is the permission."""
    store: ImageStore = request.app.state.image_store
    valid = secrets.compare_digest(
        signature.encode(), _signed(await store.secret(), name, expires).encode()
    )
    found = await store.get(name) if valid and expires > time.time() else None
    if found is None:
        raise NotFound("the image is not kept any more, or its address is not whole")
    media_type = f"image/{name.rpartition('.')[2]}"
    return Response(found, media_type=media_type, headers={"Cache-Control": "private, no-store"})


async def _json_form(request: Request, flow: Flow) -> Form:
    """Return the form in a JSON body: `image`, or `images`, of which the first counts."""
    body = await json_of(request, flow.limit)
    fields = body.fields
    images = [item for name in ("image", "images") for item in _listed(fields.get(name))]
    uploads = {"image": images[0]} if images else {}
    if mask := _listed(fields.get("mask")):
        uploads["mask"] = mask[0]
    ignored = [
        name for name in fields if name not in KNOWN_TEXTS.union(("image", "images", "mask"))
    ]
    if len(images) > 1:
        ignored.append("images")
    name_ignored(request, ignored)
    most = flow.request.app.state.settings.max_upload_bytes

    def decode() -> dict[str, bytes | bytearray]:
        return {name: decode_image_text(name, value, most) for name, value in uploads.items()}

    files = await anyio.to_thread.run_sync(decode)
    return Form(texts_of(fields, KNOWN_TEXTS), files, body.fingerprint)


def _listed(value: Any) -> list[Any]:
    """Return the images in a value: text, `{"image_url": text}`, `{"image_url": {"url": text}}`."""
    if isinstance(value, list):
        return [image for item in value for image in _listed(item)]
    if isinstance(value, dict):
        return _listed(value.get("image_url", value.get("url")))
    return [] if value is None or value == "" else [value]


def _form(request: Request, flow: Flow, form: Form) -> OpenAIForm:
    texts = dict(form.texts)
    for alias, name in ALIASES.items():
        if (text := texts.pop(alias, None)) is not None:
            texts.setdefault(name, text)
    asked = parsed(OpenAIForm, texts)
    ignored = [name for name in WITHOUT_EFFECT if texts.get(name, "").strip()]
    if asked.model and asked.model != flow.model.name:
        ignored.append("model")
    name_ignored(request, ignored)
    return asked


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
        image_field="image",
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
    urls = await _Urls.of(request) if asked.response_format == "url" else None
    usage = usage_of(asked, images)

    def pack(finished: list[FinishedImage]) -> Answer:
        made = [_datum(image, asked, urls) for image in finished]
        body = {
            "created": int(time.time()),
            "data": made,
            "background": "opaque",
            "output_format": asked.output_format,
            "usage": usage(len(made)),
        }
        if asked.size is not None:
            body["size"] = f"{asked.size[0]}x{asked.size[1]}"
        return Answer(json.dumps(body, separators=(",", ":")).encode())

    begun = await flow.begin(images, fingerprint)
    if isinstance(begun, Answer):
        return begun.response()
    if asked.stream:
        return stream_images(flow, begun, asked, event, usage, pack)
    outcomes = await flow.finish(begun, asked.format, asked.compression)
    answer = await flow.settle(begun, outcomes, pack)
    if urls is not None:
        await urls.keep()
    return answer.response()


def _datum(image: FinishedImage, asked: OpenAIForm, urls: _Urls | None) -> dict[str, Any]:
    datum: dict[str, Any] = (
        {"b64_json": base64.b64encode(image.file).decode()}
        if urls is None
        else {"url": urls.add(image.file, asked.output_format)}
    )
    return datum | {"seed": image.seed} | ({"filtered": True} if image.filtered else {})


class _Urls:
    """Addresses under which the images of an answer are kept."""

    def __init__(self, store: ImageStore, secret: bytes, base: str) -> None:
        self._store = store
        self._secret = secret
        self._base = base
        self._files: dict[str, bytes] = {}

    @classmethod
    async def of(cls, request: Request) -> _Urls:
        store: ImageStore = request.app.state.image_store
        return cls(store, await store.secret(), str(request.base_url).rstrip("/"))

    def add(self, file: bytes, format: str) -> str:
        name = f"{uuid.uuid4().hex}.{format}"
        self._files[name] = file
        ends = int(time.time()) + KEEP_SECONDS
        signed = _signed(self._secret, name, ends)
        return f"{self._base}{FILES}/{name}?expires={ends}&signature={signed}"

    async def keep(self) -> None:
        await asyncio.gather(*(self._store.put(name, file) for name, file in self._files.items()))


_signed = signature


def usage_of(asked: OpenAIForm, images: ImagesRequest) -> Any:
    """Return a function from the number of images to OpenAI's `usage`.

    Whole numbers, as clients check: a token of text is a word or a mark, one of an image a tile of
    64 x 64 pixels.
    """
    words = len(re.findall(r"\w+|[^\w\s]", f"{asked.prompt} {asked.negative_prompt}"))

    def usage(count: int) -> dict[str, Any]:
        tiles = (images.width or 512) * (images.height or 512) // 64**2
        seen = tiles if images.upload is not None else 0
        return {
            "input_tokens": words + seen,
            "input_tokens_details": {"text_tokens": words, "image_tokens": seen},
            "output_tokens": count * tiles,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": count * tiles},
            "total_tokens": words + seen + count * tiles,
        }

    return usage


def _model(request: Request) -> dict[str, Any]:
    host: EngineHost = request.app.state.engine_host
    if (model := host.serving_model) is None:
        raise Unavailable(host.obstacle, 5.0)
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "img2img-server"}


def _json(body: Mapping[str, Any]) -> Response:
    return Answer(json.dumps(body, separators=(",", ":")).encode()).response()
