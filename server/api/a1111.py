"""A1111's API: `/sdapi/v1/img2img`, `txt2img`, and what follows them: progress, interrupt."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from pipelines.request import GenerationRequest, Pixels
from pipelines.samplers.names import A1111_LABELS
from server.accounts.admission import Admitted
from server.accounts.auth import AnyCaller
from server.api.a1111_form import A1111Form, styles_of, without_effect
from server.api.a1111_lists import check_override
from server.api.a1111_prompts import without_unsupported
from server.api.flow import Answer, Flow
from server.api.values import form_of_json, json_of, name_ignored, parsed
from server.http.envelope import json_bytes, json_response
from server.http.errors import ApiError, NotFound
from server.http.json_body import JsonBody, LongText, decode_image_text
from server.http.waiting import TimeLimit
from server.images.encode import preview_file
from server.images.infotext import infotext, settings_in
from server.images.parameters_text import schedule_label
from server.img2img.running import RunningBatches
from server.img2img.service import Batch, FinishedImage
from server.settings import Settings

_HANDLED = frozenset(
    (*A1111Form.model_fields, "init_images", "mask", "styles", "override_settings",
     "override_settings_restore_afterwards")
)  # fmt: skip
_OF_MASKS = frozenset(
    ("mask", "mask_blur", "inpainting_fill", "inpainting_mask_invert", "inpaint_full_res",
     "inpaint_full_res_padding")
)  # fmt: skip
"""Fields without effect where no mask is sent."""
_OF_IMAGES = _OF_MASKS.union(
    ("init_images", "include_init_images", "denoising_strength", "resize_mode")
)
"""Fields without effect where no image is sent."""
_PREVIEW_SIDE = 512

router = APIRouter(prefix="/sdapi/v1", include_in_schema=False)


class UnknownScript(ApiError):
    """A1111 answers so to a script that it does not have."""

    status = 422


@router.post("/img2img")
async def img2img(request: Request, admission: Admitted) -> Response:
    """Make images from an image."""
    flow = Flow(request, admission)
    body = await json_of(request, flow.limit)
    images = body.fields.get("init_images")
    images = images if isinstance(images, list) else [images] if images else []
    if not images:
        raise NotFound("Init image not found: init_images is empty")
    if len(images) > 1:
        name_ignored(request, ["init_images"])
    most = flow.request.app.state.settings.max_upload_bytes
    uploads = await anyio.to_thread.run_sync(_uploads, images[0], body.fields.get("mask"), most)
    answering = _respond(request, flow, body, *uploads)
    del body, images, uploads
    return await answering


def _uploads(image: Any, mask: Any, most: int) -> tuple[bytes, bytes | None]:
    """Return the image's and the mask's file. Raises InvalidInput. Blocking."""
    upload = decode_image_text("init_images", image, most)
    return upload, decode_image_text("mask", mask, most) if mask else None


@router.post("/txt2img")
async def txt2img(request: Request, admission: Admitted) -> Response:
    """Make images from noise."""
    flow = Flow(request, admission)
    return await _respond(request, flow, await json_of(request, flow.limit))


async def _respond(
    request: Request,
    flow: Flow,
    body: JsonBody,
    upload: bytes | None = None,
    mask: bytes | None = None,
) -> Response:
    fields = body.fields
    handled = _HANDLED - (_OF_IMAGES if upload is None else _OF_MASKS if mask is None else set())
    asked = parsed(A1111Form, form_of_json(body, handled & A1111Form.model_fields.keys()))
    if asked.script_name:
        raise UnknownScript(f"script_name: {asked.script_name[:60]} is not found; there are none")
    styles, unknown = styles_of(fields.get("styles"))
    ignored = [*without_effect(fields, handled), *(["styles"] if unknown else [])]
    ignored += check_override(fields.get("override_settings"), flow.model.name)
    asked, of_prompts = without_unsupported(asked)
    ignored += of_prompts
    name_ignored(request, ignored)
    left_out = () if asked.include_init_images else ("init_images", "mask")
    shown_fields = {name: value for name, value in fields.items() if name not in left_out}
    beginning = flow.begin(
        asked.asked(styles, upload, mask),
        body.fingerprint,
        keeps_upload=_has_images(shown_fields),
    )
    del body, fields, upload, mask
    begun = await beginning
    if isinstance(begun, Answer):
        return begun.response()
    running: RunningBatches = request.app.state.running
    with running.hold(flow.admission.identity, begun):
        outcomes = await flow.finish(begun)
    of_images = [
        generation
        for generation, outcome in zip(begun.plan.generations, outcomes, strict=True)
        if isinstance(outcome, FinishedImage)
    ]
    # Withdrawn before any image was finished, there is none, and nothing is charged.
    shown = of_images or [begun.plan.first]
    pack = partial(_packed, asked, styles, shown_fields, shown, flow.model.name)
    return (await flow.settle(begun, outcomes, pack)).response()


def _packed(
    asked: A1111Form,
    styles: tuple[str, ...],
    fields: Mapping[str, Any],
    shown: list[GenerationRequest],
    model: str,
    made: list[FinishedImage],
) -> Answer:
    # As A1111 does: what was sent, and the defaults of what was not.
    parameters: dict[str, Any] = {**asked.model_dump(mode="json"), "save_images": False, **fields}
    files = [base64.b64encode(image.file).decode() for image in made] if asked.send_images else []
    answer = {
        "images": files,
        "parameters": _plain(parameters),
        "info": json.dumps(_info(asked, styles, shown, model, made)),
    }
    return Answer(json_bytes(answer))


def _has_images(value: Any) -> bool:
    """Return whether a value of the request has a long text, which is an image, in it."""
    if isinstance(value, dict):
        return any(map(_has_images, value.values()))
    return any(map(_has_images, value)) if isinstance(value, list) else isinstance(value, LongText)


def _plain(value: Any) -> Any:
    """Return a value of the request as JSON has it; the long texts in it are images."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if isinstance(value, LongText) else value


def _info(
    asked: A1111Form,
    styles: tuple[str, ...],
    shown: list[GenerationRequest],
    model: str,
    made: list[FinishedImage],
) -> dict[str, Any]:
    """Return the fields that clients parse out of `info`."""
    first = shown[0]
    subseeds = [one.variation_seed or one.seed for one in shown]
    return {
        "prompt": first.prompt,
        "all_prompts": [one.prompt for one in shown],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [one.negative_prompt for one in shown],
        "seed": first.seed,
        "all_seeds": [one.seed for one in shown],
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": asked.subseed_strength,
        "width": asked.width,
        "height": asked.height,
        "sampler_name": A1111_LABELS[first.sampler],
        "cfg_scale": asked.cfg_scale,
        "steps": asked.steps,
        "batch_size": asked.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model,
        "sd_model_hash": "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": asked.denoising_strength,
        "extra_generation_params": {"Schedule type": schedule_label(first)},
        "index_of_first_image": 0,
        "infotexts": [image.parameters for image in made],
        "styles": styles,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": "img2img-server",
    }


@router.get("/progress")
async def progress(
    request: Request, caller: AnyCaller, skip_current_image: str = "false"
) -> Response:
    """Say how far the key's requests are: of the oldest of them."""
    running: RunningBatches = request.app.state.running
    batches = running.of(caller.identity)
    told: dict[str, Any] = {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": _state(batches),
        "current_image": None,
        "textinfo": None,
    }
    if batches:
        batch = batches[0]
        share = _share(batch)
        spent = time.monotonic() - batch.began
        told["progress"] = max(0.01, share)
        told["eta_relative"] = spent * (1 - share) / share if share else 0.0
        told["textinfo"] = None if share else "queued"
        latest = [one.handle.latest for one in batch.running if not one.handle.done]
        preview = next((p.preview for p in latest if p is not None and p.preview is not None), None)
        if preview is not None and skip_current_image.lower() not in ("true", "1"):
            work = partial(_preview, preview, batch.plan.first)
            told["current_image"] = await anyio.to_thread.run_sync(work)
    return json_response(told)


def _share(batch: Batch) -> float:
    """Return the share of the batch's work that is done, in [0, 1)."""
    done = 0.0
    for one in batch.running:
        latest = one.handle.latest
        if one.handle.done:
            done += 1
        elif latest is not None:
            done += latest.evaluation / max(1, latest.evaluations)
    return min(0.99, done / len(batch.running))


def _state(batches: list[Batch]) -> dict[str, Any]:
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    if batches:
        batch = batches[0]
        ahead = [one for one in batch.running if not one.handle.done]
        latest = ahead[0].handle.latest if ahead else None
        state |= {
            "skipped": batch.skipping,
            "interrupted": batch.interrupted,
            "job": "txt2img" if batch.plan.first.from_noise else "img2img",
            "job_count": len(batch.running),
            "job_no": len(batch.running) - len(ahead),
            "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
            "sampling_step": 0 if latest is None else latest.step,
            "sampling_steps": batch.plan.first.steps,
        }
    return state


def _preview(preview: Pixels, first: GenerationRequest) -> str:
    scale = min(1.0, _PREVIEW_SIDE / max(first.width, first.height))
    size = (max(1, round(first.width * scale)), max(1, round(first.height * scale)))
    return base64.b64encode(preview_file(preview, size)).decode()


@router.post("/interrupt")
async def interrupt(request: Request, caller: AnyCaller) -> Response:
    """End the key's requests: they are answered with the images that are finished."""
    running: RunningBatches = request.app.state.running
    for batch in running.of(caller.identity):
        batch.interrupt()
    return json_response({})


@router.post("/skip")
async def skip(request: Request, caller: AnyCaller) -> Response:
    """Leave out the image that is worked on in each of the key's requests."""
    running: RunningBatches = request.app.state.running
    for batch in running.of(caller.identity):
        batch.skip()
    return json_response(None)


@router.post("/png-info")
async def png_info(request: Request, caller: AnyCaller) -> Response:
    """Return the settings that an image's file holds as text."""
    settings: Settings = request.app.state.settings
    body = await json_of(request, TimeLimit.of(request.scope, settings.request_timeout))
    image = body.fields.get("image")
    if not image:
        raise NotFound("Image not found: image is empty")

    def read() -> dict[str, Any]:
        text = infotext(decode_image_text("image", image, settings.max_upload_bytes))
        if not text:
            return {"info": "", "items": {}, "parameters": {}}
        return {"info": text, "items": {"parameters": text}, "parameters": settings_in(text)}

    return json_response(await anyio.to_thread.run_sync(read))
