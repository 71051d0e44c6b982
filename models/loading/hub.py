"""Hub ids: which files are fetched, at which revision, and where they lie afterwards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from models.errors import HubUnreachable, ModelLoadError
from models.loading.folder import PARTS, check_layout, variants
from models.spec import PRODUCTION_MODEL

PINNED_REVISIONS = {PRODUCTION_MODEL: "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"}
"""Revisions of the hub ids that the documentation names, so that weights never change unseen."""

_HUB_SECONDS = 10.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_SMALL_FILES = (
    *(f"{part}/config.json" for part in PARTS),
    "scheduler/scheduler_config.json",
)
_TOKENIZERS = (("tokenizer/tokenizer.json",), ("tokenizer/vocab.json", "tokenizer/merges.txt"))
"""The files that a tokenizer is read from: what transformers writes since its release 5, or what
it wrote before."""


def is_hub_id(model: str) -> bool:
    """Return whether it reads like ``owner/name``."""
    return _HUB_ID.fullmatch(model) is not None


def download(
    model: str,
    revision: str | None,
    dtype: torch.dtype = torch.float32,
    *,
    ask_hub: bool = False,
) -> Path:
    """The folder of a hub id's safetensors (its fp16 ones where they do), fetched if need be.

    A revision that is a commit never changes: what is in the cache is taken without asking the
    hub, unless ``ask_hub`` wants what is missing there. Raises HubUnreachable where the hub is
    needed and cannot be asked, else ModelLoadError.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]

    revision = revision or PINNED_REVISIONS.get(model)
    commit = revision is not None and _COMMIT.fullmatch(revision) is not None
    if commit and not ask_hub and (kept := cached(model, revision, dtype)):
        return kept
    try:
        # One request without the library's retries, which take half a minute without a network.
        found = HfApi().model_info(model, revision=revision, timeout=_HUB_SECONDS)
        files = [sibling.rfilename for sibling in found.siblings or ()]
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=wanted_files(files, dtype))
        )
    except HfHubHTTPError as error:
        raise ModelLoadError(
            f"the hub does not give {model!r} at revision {revision or 'main'!r}: {error}"
        ) from error
    except ValueError as error:
        raise ModelLoadError(f"{model!r} is no hub id: {error}") from error
    except (OSError, ClientError) as offline:
        if not ask_hub and (kept := cached(model, revision, dtype)):
            return kept
        raise HubUnreachable(model, str(offline)) from offline


def cached(model: str, revision: str | None, dtype: torch.dtype) -> Path | None:
    """The folder of a hub id if what a bundle in ``dtype`` needs is in the cache, else None.

    In float32 fp16 files are not it: the hub may have better ones.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
    except IncompleteSnapshotError as incomplete:
        # So the library calls a snapshot without the files that are never fetched here.
        folder = Path(incomplete.snapshot_path)
    except (OSError, ValueError):
        return None
    try:
        check_layout(folder)
    except ModelLoadError:
        return None
    if dtype is torch.float32:
        for part in PARTS:
            _, plain = variants(file.name for file in (folder / part).iterdir())
            if not plain:
                return None

    def has(files: Iterable[str]) -> bool:
        return all((folder / file).is_file() for file in files)

    return folder if has(_SMALL_FILES) and any(map(has, _TOKENIZERS)) else None


def remove_damaged(folder: Path) -> list[str]:
    """Remove the files of a snapshot whose bytes are not those of the hub, and return their names.

    The library compares lengths alone. Its cache names a file's bytes by what the hub calls them:
    of weights that is their SHA-256; small files, which git names otherwise, are not looked at.
    """
    damaged = []
    for file in sorted(folder.rglob("*")):
        stored = file.resolve()
        if not stored.is_file() or not _SHA256.fullmatch(stored.name):
            continue
        with stored.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != stored.name:
            damaged.append(file.relative_to(folder).as_posix())
            file.unlink()
            stored.unlink()
    return damaged


def wanted_files(files: Sequence[str], dtype: torch.dtype) -> list[str]:
    """The files of a repository that a bundle is made of."""
    wanted = [f for f in files if f.endswith((".json", ".txt")) and f.count("/") <= 1]
    for part in PARTS:
        half, plain = variants(f for f in files if f.startswith(f"{part}/"))
        wanted += half if half and (dtype is not torch.float32 or not plain) else plain
    return wanted
