"""`img2img models pull`: a hub model into the local cache, ahead of serving.

With it comes what stands beside it by these settings: the CLIP model that guides, and the safety
checker where pictures are to be checked. The server then needs no network.
"""

from __future__ import annotations

from pathlib import Path

from server.settings import Settings


def pull_model(settings: Settings, *, named: bool) -> str:
    """Fetch the settings' model, or the production default if they name the embedded one.

    ``named`` tells that the model was asked for by name. Return what was done, in words; also that
    nothing had to be, where all is in the cache and the hub cannot be asked. Raises ValueError if
    there is nothing to fetch, RuntimeError if it cannot be or is damaged.
    """
    import torch

    from models.device import choose_device, choose_dtype
    from models.errors import HubUnreachable, ModelLoadError
    from models.loading.folder import check_layout
    from models.loading.hub import (
        PINNED_REVISIONS,
        cached,
        download,
        is_hub_id,
        remove_damaged,
    )
    from models.spec import EMBEDDED, PRODUCTION_MODEL

    model = settings.model
    if model == EMBEDDED and not named:
        model = PRODUCTION_MODEL
    if model == EMBEDDED or Path(model).expanduser().exists():
        raise ValueError(f"{model} is here already: only hub ids are fetched")
    if not is_hub_id(model):
        raise ValueError(f"{model!r} is no hub id, such as {PRODUCTION_MODEL!r}")
    try:
        # What is fetched for a CUDA machine may well be fetched on one without.
        half = settings.dtype == "float16"
        device = torch.device("cuda") if half else choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        folder = download(model, settings.model_revision, dtype, ask_hub=True)
        if damaged := remove_damaged(folder):
            raise RuntimeError(
                f"{', '.join(damaged)} of {model} did not have the SHA-256 that the hub gives and "
                "was removed: a damaged download or disk. Pull again"
            )
        check_layout(folder)
    except HubUnreachable as offline:
        kept = cached(model, settings.model_revision or PINNED_REVISIONS.get(model), dtype)
        if kept is None:
            raise RuntimeError(
                f"nothing was fetched: the hub cannot be reached ({offline.reason}), and {model} "
                "is not in the local cache. Try again with a connection, or copy a folder in "
                "diffusers' layout here and name it as the model"
            ) from offline
        return (
            f"nothing was fetched: the hub cannot be reached ({offline.reason}), and {model} is in "
            f"the local cache already, in {kept}"
        )
    except ModelLoadError as error:
        raise RuntimeError(str(error)) from error
    revision = settings.model_revision or PINNED_REVISIONS.get(model) or "main"
    beside = _pull_companions(settings, model)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return f"{model} at {revision}: {size / 2**30:.1f} GiB of weights in {folder}{beside}"


def _pull_companions(settings: Settings, model: str) -> str:
    """Fetch what stands beside the model; in words. Raises RuntimeError for what must be there."""
    from models.auxiliary.choose import AUTO, pull_checker, pull_clip
    from models.errors import ModelLoadError

    lines = []
    try:
        if settings.safety != "off":
            checker = pull_checker(model, settings.safety_checker, settings.model_revision)
            lines.append(f"safety checker: {checker or 'a local one'}")
    except ModelLoadError as error:
        raise RuntimeError(str(error)) from error
    try:
        clip = pull_clip(settings.clip_model)
        lines.append(f"CLIP guidance: {clip or 'nothing to fetch'}")
    except ModelLoadError as error:
        if settings.clip_model != AUTO:
            raise RuntimeError(str(error)) from error
        lines.append(f"without CLIP guidance: {error}")
    return "".join(f"\n{line}" for line in lines)
