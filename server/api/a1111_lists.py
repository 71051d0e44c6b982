"""What clients of A1111's API ask at their start: lists, options, signs of life."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pipelines.prompt.styles import PLACEHOLDER, STYLES
from pipelines.samplers.names import A1111_ALIASES, A1111_LABELS, SCHEDULE_LABELS
from server.accounts.auth import AnyCaller
from server.api.flow import model_in_service
from server.api.values import json_of, name_ignored
from server.errors import InvalidInput
from server.http.envelope import json_response
from server.http.errors import NotFound
from server.http.waiting import TimeLimit

router = APIRouter(include_in_schema=False)

_SCHEDULES = [(schedule.value.lower(), label) for schedule, label in SCHEDULE_LABELS.items()]
_MODEL_KEYS = ("sd_model_checkpoint", "sd_checkpoint_hash")
_NO_OPTIONS = {
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "samples_format": "png",
    "img2img_fix_steps": False,
    "img2img_color_correction": False,
    "inpainting_mask_weight": 1.0,
    "eta_noise_seed_delta": 0,
    "sd_checkpoint_hash": "",
}
_EMPTY: dict[str, Any] = {
    "sd-vae": [],
    "sd-modules": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "loras": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "latent-upscale-modes": [],
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
    "extensions": [],
    "cmd-flags": {"api": True},
    "upscalers": [
        {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
    ],
}
_DONE = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings",
         "unload-checkpoint", "reload-checkpoint")  # fmt: skip


def names_model(value: object, model: str) -> bool:
    """Return whether a client's text names the loaded model: with a suffix, a hash, or neither."""
    text = str(value).strip()
    plain = text.split(" [")[0].removesuffix(".safetensors").removesuffix(".ckpt")
    return plain in ("", model, model.removesuffix(".safetensors"))


def check_override(value: object, model: str) -> list[str]:
    """Return the names of overrides without effect.

    Raises InvalidInput for a model that is not loaded: it is refused, never ignored.
    """
    if not isinstance(value, Mapping):
        return ["override_settings"] if value else []
    ignored = []
    for name, item in value.items():
        if name in _MODEL_KEYS:
            if item and not names_model(item, model):
                raise InvalidInput([_other_model(f"override_settings.{name}", item, model)])
        elif item != _NO_OPTIONS.get(name) and item not in (None, "", "Automatic", "None"):
            ignored.append(f"override_settings.{name}")
    return ignored


def _other_model(field: str, value: object, model: str) -> str:
    return f"{field}: {str(value)[:60]} is not loaded; {model} is the one model here"


@router.get("/sdapi/v1/options")
async def options(request: Request, caller: AnyCaller) -> Response:
    """Return the options that clients read; none of them can be changed."""
    model = model_in_service(request).name
    return json_response({"sd_model_checkpoint": model, **_NO_OPTIONS})


@router.post("/sdapi/v1/options")
async def set_options(request: Request, caller: AnyCaller) -> Response:
    """Take the options back unchanged; name those that would change something as ignored."""
    settings = request.app.state.settings
    body = await json_of(request, TimeLimit.of(request.scope, settings.request_timeout))
    model = model_in_service(request).name
    named = body.fields.get("sd_model_checkpoint")
    if named and not names_model(named, model):
        raise InvalidInput([_other_model("sd_model_checkpoint", named, model)])
    kept = {"sd_model_checkpoint": named, **_NO_OPTIONS}
    changed = [name for name, value in body.fields.items() if value != kept.get(name)]
    name_ignored(request, changed)
    return json_response(None)


@router.get("/sdapi/v1/samplers")
async def samplers(caller: AnyCaller) -> Response:
    """List the samplers by A1111's names."""
    return json_response(
        [
            {"name": name, "aliases": list(A1111_ALIASES[sampler]), "options": {}}
            for sampler, name in A1111_LABELS.items()
        ]
    )


@router.get("/sdapi/v1/schedulers")
async def schedulers(caller: AnyCaller) -> Response:
    """List the ways to space noise levels by A1111's names."""
    return json_response(
        [
            {
                "name": name,
                "label": label,
                "aliases": None,
                "default_rho": 7.0 if name == "karras" else -1.0,
                "need_inner_model": name == "sgm_uniform",
            }
            for name, label in _SCHEDULES
        ]
    )


@router.get("/sdapi/v1/sd-models")
async def sd_models(request: Request, caller: AnyCaller) -> Response:
    """List the one model."""
    model = model_in_service(request).name
    return json_response(
        [
            {
                "title": model,
                "model_name": model,
                "hash": None,
                "sha256": None,
                "filename": model,
                "config": None,
            }
        ]
    )


@router.get("/sdapi/v1/prompt-styles")
async def prompt_styles(caller: AnyCaller) -> Response:
    """List the style presets as A1111's styles."""
    return json_response(
        [
            {
                "name": name,
                "prompt": style.prompt.replace(PLACEHOLDER, "{prompt}"),
                "negative_prompt": style.negative_prompt,
            }
            for name, style in STYLES.items()
        ]
    )


@router.get("/sdapi/v1/memory")
async def memory(caller: AnyCaller) -> Response:
    """Say nothing of the machine: it is others' too."""
    return json_response({"ram": {"error": "not told"}, "cuda": {"error": "not told"}})


def _always(content: Any) -> Callable[..., Awaitable[Response]]:
    async def answer(caller: AnyCaller) -> Response:
        return json_response(content)

    return answer


for _name, _content in _EMPTY.items():
    router.get(f"/sdapi/v1/{_name}")(_always(_content))
for _name in _DONE:  # what asks to load or reload: it is loaded
    router.post(f"/sdapi/v1/{_name}")(_always(None))


@router.get("/controlnet/{name}")
async def controlnet(name: str) -> Response:
    """Say that ControlNet has nothing."""
    if name not in ("model_list", "module_list", "control_types"):
        raise NotFound(f"nothing is at /controlnet/{name[:60]}")
    return json_response({name: {} if name == "control_types" else []})


@router.get("/queue/status")
async def queue_status(request: Request) -> Response:
    """Answer Gradio's sign of life."""
    return json_response({"msg": "estimation", "queue_size": 0, "queue_eta": 0.0})


@router.get("/internal/ping")
async def ping() -> Response:
    """Answer a sign of life."""
    return json_response({})


@router.get("/config")
async def config() -> Response:
    """Answer a sign of life: Gradio's configuration, of a page that is not there."""
    return json_response({"version": "0", "mode": "blocks", "components": [], "dependencies": []})


@router.get("/startup-events")
@router.get("/user")
async def nothing() -> Response:
    """Answer a sign of life."""
    return json_response(None)


@router.post("/login")
async def login() -> Response:
    """Let clients of a login form through: each request is checked by its own key."""
    return json_response({"success": True})
