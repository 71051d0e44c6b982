"""Stability's v1 API, the ancestor of the contract: `/v1/generation`, `/v1/engines`, `/v1/user`."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.accounts.admission import FINISH_HEADER, SEED_HEADER, Admitted
from server.accounts.auth import AnyCaller
from server.api.accept import accepted_types
from server.api.flow import Answer, Flow, model_in_service
from server.api.stability_form import (
    PROMPT_FIELDS,
    ImageToImageForm,
    MaskingForm,
    TextToImageForm,
    combined,
    prompts_of_form,
    prompts_of_json,
)
from server.api.values import Form, Problems, form_of, form_of_json, json_of, name_ignored, parsed
from server.errors import InvalidInput
from server.http.envelope import json_bytes, json_response
from server.http.errors import ApiError, BadRequest
from server.http.failure_shapes import name_fields
from server.images.fit import ResizeMode
from server.images.masks import MaskOptions, MaskReads
from server.img2img.images_request import ImagesRequest
from server.img2img.service import FinishedImage

_ENGINES = ("stable-diffusion-v1-6", "stable-diffusion-v1-5")
_READS = {
    "MASK_IMAGE_WHITE": MaskReads.LIGHT,
    "MASK_IMAGE_BLACK": MaskReads.DARK,
    "INIT_IMAGE_ALPHA": MaskReads.TRANSPARENT,
}
_PROMPT_NAMES = {"prompt": "text_prompts", "negative_prompt": "text_prompts"}

router = APIRouter(prefix="/v1", include_in_schema=False)


class NotAcceptable(ApiError):
    """The Accept header names nothing that can be answered."""

    status = 406


@router.post("/generation/{engine}/image-to-image")
async def image_to_image(request: Request, admission: Admitted, engine: str) -> Response:
    """Make images from an image. Any engine's name is taken: the loaded model serves all."""
    flow = Flow(request, admission)
    name_fields(request.scope, _PROMPT_NAMES)
    names = frozenset((*ImageToImageForm.model_fields, "mode"))
    files = frozenset(("init_image",))
    form = await form_of(request, flow.limit, texts=names | PROMPT_FIELDS, files=files)
    # npm's stability-ai sends the one for the other.
    if form.text("init_image_mode"):
        form = form.without(request, "mode")
    elif mode := form.texts.pop("mode", ""):
        form.texts["init_image_mode"] = mode
        name_fields(request.scope, {"init_image_mode": "mode", **_PROMPT_NAMES})
    by_schedule = form.text("init_image_mode") == "STEP_SCHEDULE"
    form = form.without(request, "image_strength" if by_schedule else "step_schedule_start")
    problems = Problems()
    with problems.gathered():
        asked = parsed(ImageToImageForm, form)
    with problems.gathered():
        prompts = combined(prompts_of_form(form.texts))
    with problems.gathered():
        upload = _upload(form, "init_image")
    problems.check()
    answering = _respond(
        request,
        flow,
        asked.samples,
        asked.asked(
            prompts,
            upload=upload,
            image_strength=asked.strength,
            keep_size=True,
            resize_mode=ResizeMode.STRETCH,
        ),
        form.fingerprint,
    )
    del form, upload
    return await answering


@router.post("/generation/{engine}/image-to-image/masking")
async def masking(request: Request, admission: Admitted, engine: str) -> Response:
    """Make the masked part of an image anew."""
    flow = Flow(request, admission)
    name_fields(request.scope, {"mask": "mask_image", **_PROMPT_NAMES})
    files = frozenset(("init_image", "mask_image"))
    names = frozenset(MaskingForm.model_fields)
    form = await form_of(request, flow.limit, texts=names | PROMPT_FIELDS, files=files)
    by_alpha = form.text("mask_source") == "INIT_IMAGE_ALPHA"
    form = form.without(request, "mask_image") if by_alpha else form
    problems = Problems()
    with problems.gathered():
        asked = parsed(MaskingForm, form)
    with problems.gathered():
        prompts = combined(prompts_of_form(form.texts))
    with problems.gathered():
        upload = _upload(form, "init_image")
    with problems.gathered():
        mask_upload = None if by_alpha else _upload(form, "mask_image")
    problems.check()
    mask = MaskOptions(
        mask_upload,
        _READS[asked.mask_source],
        field="init_image" if by_alpha else "mask_image",
    )
    answering = _respond(
        request,
        flow,
        asked.samples,
        asked.asked(
            prompts,
            upload=upload,
            mask=mask,
            image_strength=asked.image_strength,
            keep_size=True,
            resize_mode=ResizeMode.STRETCH,
        ),
        form.fingerprint,
    )
    del form, upload, mask_upload, mask
    return await answering


@router.post("/generation/{engine}/text-to-image")
async def text_to_image(request: Request, admission: Admitted, engine: str) -> Response:
    """Make images from noise."""
    flow = Flow(request, admission)
    name_fields(request.scope, _PROMPT_NAMES)
    body = await json_of(request, flow.limit)
    names = frozenset(TextToImageForm.model_fields)
    name_ignored(request, [name for name in body.fields if name not in names | {"text_prompts"}])
    problems = Problems()
    with problems.gathered():
        asked = parsed(TextToImageForm, form_of_json(body, names))
    with problems.gathered():
        prompts = combined(prompts_of_json(body.fields.get("text_prompts")))
    problems.check()
    images = asked.asked(prompts, width=asked.width, height=asked.height)
    answering = _respond(request, flow, asked.samples, images, body.fingerprint)
    del body
    return await answering


@router.get("/engines/list")
async def engines(request: Request, caller: AnyCaller) -> Response:
    """List the names that old clients use; one model serves them all."""
    model = model_in_service(request)
    return json_response(
        [
            {
                "id": name,
                "name": name.replace("-", " "),
                "description": f"served by {model.name}",
                "type": "PICTURE",
            }
            for name in _ENGINES
        ]
    )


@router.get("/user/balance")
async def balance(request: Request, caller: AnyCaller) -> Response:
    """Return the key's credits as a number; without accounts what nobody can use up."""
    accounts = request.app.state.accounts
    if accounts is None or caller.account is None or not accounts.charges:
        return json_response({"credits": 1_000_000.0})
    found = await accounts.ledger.balance(caller.account.id)
    return json_response({"credits": found.available / 10})


@router.get("/user/account")
async def account(request: Request, caller: AnyCaller) -> Response:
    """Return an account in the API's shape, made of the key's name."""
    digest = hashlib.sha256(caller.identity.encode()).hexdigest()[:24]
    organization = {"id": f"org-{digest}", "is_default": True, "name": caller.name, "role": "OWNER"}
    return json_response(
        {
            "id": f"user-{digest}",
            "email": f"{digest}@localhost",
            "profile_picture": "",
            "organizations": [organization],
        }
    )


def _upload(form: Form, name: str) -> bytes | bytearray:
    if name not in form.files:
        raise InvalidInput([f"{name}: is required"])
    return form.files[name]


def _wants_png(request: Request) -> bool:
    """Return whether the answer is the image alone. Raises NotAcceptable."""
    types = accepted_types(", ".join(request.headers.getlist("accept"))) or [("*/*", 1.0)]
    weights = {name: weight for name, weight in types if weight > 0}
    json_weight = max(weights.get(name, 0.0) for name in ("application/json", "application/*"))
    png_weight = max(weights.get(name, 0.0) for name in ("image/png", "image/*"))
    if not json_weight and not png_weight and "*/*" not in weights:
        raise NotAcceptable("Accept: must be one of application/json, image/png")
    return png_weight > max(json_weight, 0.0 if png_weight == 1 else weights.get("*/*", 0.0))


async def _respond(
    request: Request, flow: Flow, samples: int, images: ImagesRequest, fingerprint: str
) -> Response:
    png = _wants_png(request)
    if png and samples > 1:
        raise BadRequest(f"samples: {samples} is not 1, which is what image/png can hold")
    beginning = flow.begin(images, f"{fingerprint} {png}")
    del images
    begun = await beginning
    if isinstance(begun, Answer):
        return begun.response()
    outcomes = await flow.finish(begun)
    seeds = [generation.seed for generation in begun.plan.generations]

    def pack(made: list[FinishedImage]) -> Answer:
        if png:
            (image,) = made
            headers = {SEED_HEADER: str(image.seed), FINISH_HEADER: _reason(image)}
            return Answer(image.file, "image/png", headers)
        artifacts = [
            _artifact(outcome, seed) for outcome, seed in zip(outcomes, seeds, strict=True)
        ]
        return Answer(json_bytes({"artifacts": artifacts}))

    return (await flow.settle(begun, outcomes, pack)).response()


def _artifact(outcome: FinishedImage | Exception, seed: int) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return {"base64": "", "seed": seed, "finishReason": "ERROR"}
    return {
        "base64": base64.b64encode(outcome.file).decode(),
        "seed": outcome.seed,
        "finishReason": _reason(outcome),
    }


def _reason(image: FinishedImage) -> str:
    return "CONTENT_FILTERED" if image.filtered else "SUCCESS"
