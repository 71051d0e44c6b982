"""What `img2img models pull` does: a hub model into the local cache, ahead of serving."""

from __future__ import annotations

from pathlib import Path

from server.settings import Settings


def pull_model(settings: Settings, *, named: bool) -> str:
    """Fetch the settings' model, or the production default if they name the embedded one.

    ``named`` tells that the model was asked for by name. Returns what was done, in words. Raises
    ValueError if there is nothing to fetch, RuntimeError if it cannot be.
    """
    import torch

    from models.device import choose_device, choose_dtype
    from models.errors import ModelLoadError
    from models.folder import check_layout
    from models.hub import PINNED_REVISIONS, download, is_hub_id
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
        check_layout(folder)
    except ModelLoadError as error:
        raise RuntimeError(str(error)) from error
    revision = settings.model_revision or PINNED_REVISIONS.get(model) or "main"
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return f"{model} at {revision}: {size / 2**30:.1f} GiB of weights in {folder}"
