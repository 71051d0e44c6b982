"""Models that stand beside Stable Diffusion, and where they come from when the operator says so.

CLIP steers pictures towards the prompt; the safety checker says which are to be held back.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from models.auxiliary.safety_checker import SafetyModel, load_safety
from models.bundle import ModelBundle
from models.clip import ClipModel
from models.errors import ModelLoadError
from models.loading.clip import load_beside
from models.loading.hub import PINNED_REVISIONS as MODEL_REVISIONS
from models.loading.hub import is_hub_id

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
_A_CHECKER = "CompVis/stable-diffusion-safety-checker"
_SAFETY_FOLDER = "safety_checker"
_SAFETY_FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]


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


def choose_safety(
    bundle: ModelBundle, choice: str = AUTO, revision: str | None = None
) -> SafetyModel:
    """The safety checker that ``choice`` names: ``auto``, a folder or a hub id.

    ``auto`` is the one that the model ships, ``revision`` the model's own. Raises ModelLoadError
    where there is none: a check that was asked for is never left out silently.
    """
    if choice == AUTO:
        own = shipped_checker(bundle.path)
        if own is None and is_hub_id(bundle.name):
            own = shipped_checker(_fetch_own_checker(bundle.name, revision))
        if own is None:
            raise ModelLoadError(_no_checker(bundle.name))
        return _load_checker(own, bundle, f"{bundle.name}'s own")
    path = Path(choice).expanduser()
    if path.is_dir():
        return _load_checker(path, bundle, path.name)
    if not is_hub_id(choice):
        raise ModelLoadError(
            f"safety checker {choice!r} is neither 'auto', nor a folder that exists, "
            f"nor a hub id such as {_A_CHECKER!r}"
        )
    return _load_checker(fetch(choice, _SAFETY_FILES), bundle, choice)


def pull_clip(choice: str = AUTO) -> str | None:
    """Fetch the CLIP model that a hub model would be guided by; its name, None for a local one.

    Raises ModelLoadError.
    """
    model = DEFAULT_CLIP if choice == AUTO else choice
    if choice == NONE or Path(choice).expanduser().is_dir() or not is_hub_id(model):
        return None
    fetch(model, _CLIP_FILES)
    return model


def pull_checker(model: str, choice: str = AUTO, revision: str | None = None) -> str | None:
    """Fetch the safety checker of the hub id ``model``, or the one that ``choice`` names.

    Its hub id; None for a local one. Raises ModelLoadError, also where the model ships none.
    """
    if choice == AUTO:
        if shipped_checker(_fetch_own_checker(model, revision)) is None:
            raise ModelLoadError(_no_checker(model))
        return model
    if Path(choice).expanduser().is_dir() or not is_hub_id(choice):
        return None
    fetch(choice, _SAFETY_FILES)
    return choice


def _fetch_own_checker(model: str, revision: str | None) -> Path:
    """The folder of a hub model with the safety checker that it ships, if it does."""
    files = [f"{_SAFETY_FOLDER}/{file}" for file in _SAFETY_FILES]
    files.append("feature_extractor/preprocessor_config.json")
    return fetch(model, files, revision=revision or MODEL_REVISIONS.get(model))


def shipped_checker(folder: Path | None) -> Path | None:
    """The safety checker's folder in a model's, None where it ships none."""
    own = None if folder is None else folder / _SAFETY_FOLDER
    return own if own is not None and any(own.glob("*.safetensors")) else None


def _no_checker(model: str) -> str:
    return (
        f"the model {model!r} ships no safety checker: name one with IMG2IMG_SAFETY_CHECKER, a "
        f"folder or a hub id such as {_A_CHECKER!r}, or set IMG2IMG_SAFETY=off"
    )


def _load_checker(folder: Path, bundle: ModelBundle, name: str) -> SafetyModel:
    try:
        return load_safety(folder, name=name, device=bundle.device, dtype=bundle.dtype)
    except Exception as error:  # whatever a library makes of a bad file
        raise ModelLoadError(f"{folder} is not a safety checker that loads: {error}") from error


def fetch(
    model: str, files: list[str], *, revision: str | None = None, local_only: bool = False
) -> Path:
    """The local folder of a hub id's ``files``, downloaded if need be. Raises ModelLoadError.

    What is in the cache at a pinned revision is taken without asking the hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    revision = revision or PINNED_REVISIONS.get(model)

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=files, local_files_only=local
            )
        )

    weights = [file for file in files if file.endswith(".safetensors")]
    try:
        if revision is not None and not local_only:
            with contextlib.suppress(OSError, LocalEntryNotFoundError):
                kept = snapshot(True)
                if all((kept / file).is_file() for file in weights):
                    return kept
        return snapshot(local_only)
    except HfHubHTTPError as error:
        raise ModelLoadError(f"the hub does not give {model!r}: {error}") from error
    except (OSError, LocalEntryNotFoundError) as offline:
        try:
            return snapshot(True)
        except (OSError, LocalEntryNotFoundError):
            reason = "" if local_only else " and the hub cannot be reached"
            raise ModelLoadError(f"{model!r} is not in the local cache{reason}") from offline
