"""Models that stand beside Stable Diffusion, and where they come from when the operator says so.

CLIP steers pictures towards the prompt.
"""

from __future__ import annotations

import logging
from pathlib import Path

from models.bundle import ModelBundle
from models.clip import ClipModel, load_beside
from models.errors import ModelLoadError
from models.hub import is_hub_id

logger = logging.getLogger(__name__)

AUTO = "auto"
NONE = "none"
DEFAULT_CLIP = "openai/clip-vit-large-patch14"
"""What Stable Diffusion 1.x's own text encoder is one half of."""

PINNED_REVISIONS = {DEFAULT_CLIP: "32bd64288804d66eefd0ccbe215aa642df71cc41"}
_CLIP_FILES = [
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
]


def choose_clip(bundle: ModelBundle, choice: str = AUTO) -> ClipModel | None:
    """The CLIP model that ``choice`` names: ``auto``, ``none``, a folder or a hub id.

    ``auto`` is the model's own where its folder ships one; else OpenAI's ViT-L/14, downloaded for
    a model from the hub and taken from the cache for a local one, so that naming a folder never
    calls the network. None where ``auto`` finds none. Raises ModelLoadError for one that was named.
    """
    if choice == NONE:
        return None
    if choice == AUTO:
        if bundle.clip is not None:
            return bundle.clip
        try:
            folder = fetch(DEFAULT_CLIP, _CLIP_FILES, local_only=not is_hub_id(bundle.name))
            return load_beside(folder, bundle.device, bundle.dtype, name=DEFAULT_CLIP)
        except ModelLoadError as error:
            logger.warning("no CLIP guidance: %s", error)
            return None
    path = Path(choice).expanduser()
    if path.is_dir():
        return load_beside(path, bundle.device, bundle.dtype, bundle.tokenizer)
    if not is_hub_id(choice):
        raise ModelLoadError(
            f"CLIP model {choice!r} is neither 'auto', nor 'none', nor a folder that exists, "
            f"nor a hub id such as {DEFAULT_CLIP!r}"
        )
    folder = fetch(choice, _CLIP_FILES)
    return load_beside(folder, bundle.device, bundle.dtype, bundle.tokenizer, choice)


def fetch(model: str, files: list[str], *, local_only: bool = False) -> Path:
    """The local folder of a hub id's ``files``, downloaded if need be. Raises ModelLoadError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    revision = PINNED_REVISIONS.get(model)

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=files, local_files_only=local
            )
        )

    try:
        return snapshot(local_only)
    except HfHubHTTPError as error:
        raise ModelLoadError(f"the hub does not give {model!r}: {error}") from error
    except (OSError, LocalEntryNotFoundError) as offline:
        try:
            return snapshot(True)
        except (OSError, LocalEntryNotFoundError):
            reason = "" if local_only else " and the hub cannot be reached"
            raise ModelLoadError(f"{model!r} is not in the local cache{reason}") from offline
