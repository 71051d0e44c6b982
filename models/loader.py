"""Weights, wherever they are, to a `ModelBundle`.

Three sources: ``embedded`` (the small model that ships with the project), a local diffusers
folder, and a hub id, which is downloaded once and is then a local folder. Only safetensors are
read: a pickle can run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.bundle import ModelBundle

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"

PINNED_REVISIONS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
}
"""Revisions of the hub ids that the documentation names, so that weights never change unseen."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PARTS = ("unet", "vae", "text_encoder")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ModelLoadError(Exception):
    """The model cannot be loaded; the message says what is wrong and what to do."""


def choose_device(device: str = "auto") -> torch.device:
    """``auto`` takes CUDA where there is one, else the CPU. Raises ModelLoadError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelLoadError(f"device {device!r} is not one that torch knows") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(f"device {device!r} was asked for, but torch sees no CUDA device")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` takes float16 on CUDA, and on the CPU what ``scripts/bench_dtype`` finds faster.

    That is bfloat16 on a CPU with AMX tiles and float32 on any other: with AVX512-BF16 alone, or
    with neither, bfloat16 was the slower one (``ONEDNN_MAX_CPU_ISA`` tells oneDNN what to leave
    unused). Decided by what the CPU has, not by a stop-watch at start: every start of a machine
    then gives the same pictures.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if cpu_has_matrix_bfloat16() else torch.float32
    if dtype not in _DTYPES:
        raise ModelLoadError(f"dtype {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    if _DTYPES[dtype] is torch.float16 and device.type == "cpu":
        raise ModelLoadError("dtype 'float16' is not for the CPU: use float32 or bfloat16")
    return _DTYPES[dtype]


def cpu_has_matrix_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def load_bundle(
    model: str = EMBEDDED,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> ModelBundle:
    """Load ``model``: ``embedded``, a diffusers folder, or a hub id (``owner/name``).

    Raises ModelLoadError with a reason fit for the operator.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    name, folder = resolve_model(model, revision, chosen_dtype)
    return load_folder(folder, name=name, device=chosen_device, dtype=chosen_dtype)


def resolve_model(
    model: str, revision: str | None, dtype: torch.dtype = torch.float32
) -> tuple[str, Path]:
    """(name, local folder) of a model. A hub id is downloaded if it is not there yet."""
    if model == EMBEDDED:
        return EMBEDDED, EMBEDDED_FOLDER
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve().name, path
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ModelLoadError(
            f"{model} is a pickle, and a pickle can run code when it is read: "
            "use the .safetensors version of this model"
        )
    if path.exists():
        raise ModelLoadError(f"{model} is a file: name a folder in the diffusers layout")
    if not _HUB_ID.fullmatch(model):
        raise ModelLoadError(
            f"model {model!r} is neither 'embedded', nor a folder that exists, "
            "nor a hub id such as 'stable-diffusion-v1-5/stable-diffusion-v1-5'"
        )
    return model, download(model, revision, dtype)


def download(model: str, revision: str | None, dtype: torch.dtype = torch.float32) -> Path:
    """Fetch a hub id's safetensors (its fp16 ones where those do), or find them in the cache."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    revision = revision or PINNED_REVISIONS.get(model)
    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=_wanted(HfApi().list_repo_files(model, revision=revision), dtype),
            )
        )
    except HfHubHTTPError as error:
        raise ModelLoadError(
            f"the hub does not give {model!r} at revision {revision or 'main'!r}: {error}"
        ) from error
    except (OSError, LocalEntryNotFoundError) as offline:
        try:
            return Path(snapshot_download(model, revision=revision, local_files_only=True))
        except (OSError, LocalEntryNotFoundError):
            raise ModelLoadError(
                f"{model!r} is not in the local cache and the hub cannot be reached ({offline}). "
                "Download it on a connected machine, or name a local folder"
            ) from offline


def _wanted(files: Sequence[str], dtype: torch.dtype) -> list[str]:
    """The files of a repository that a bundle is made of."""
    wanted = [f for f in files if f.endswith((".json", ".txt")) and f.count("/") <= 1]
    for part in _PARTS:
        weights = [f for f in files if f.startswith(f"{part}/") and f.endswith(".safetensors")]
        half = [f for f in weights if ".fp16." in f]
        full = [f for f in weights if "." not in Path(f).name.removesuffix(".safetensors")]
        wanted += half if half and dtype is not torch.float32 else full
    return wanted


def load_folder(
    folder: Path, *, name: str, device: torch.device, dtype: torch.dtype
) -> ModelBundle:
    """Load a folder in the diffusers layout. Raises ModelLoadError."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.utils import logging as diffusers_logging
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    _check_layout(folder)
    # Their progress bars would land in the middle of a server's log lines.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    parts: dict[str, Any] = {}
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for part, cls in classes.items():
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        if not _has_plain_weights(folder / part):
            options["variant"] = "fp16"
        options["dtype" if part == "text_encoder" else "torch_dtype"] = dtype
        try:
            loaded = cls.from_pretrained(folder / part, **options)
        except Exception as error:  # whatever a library makes of a bad file
            raise ModelLoadError(f"{folder / part} cannot be loaded: {error}") from error
        # channels_last is what convolutions run fastest in, on CUDA and on the CPU alike.
        loaded = loaded.to(device, memory_format=torch.channels_last)
        parts[part] = loaded.eval().requires_grad_(False)
    _check_architecture(folder, parts)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:
        raise ModelLoadError(f"{folder / 'tokenizer'} cannot be loaded: {error}") from error
    scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return ModelBundle(
        name=name,
        tokenizer=tokenizer,
        scheduler_config=scheduler_config,
        device=device,
        dtype=dtype,
        path=folder,
        **parts,
    )


def _has_plain_weights(folder: Path) -> bool:
    return any(".fp16." not in file.name for file in folder.glob("*.safetensors"))


def _check_layout(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise ModelLoadError(f"{folder} has no model_index.json: not a diffusers folder")
    index = json.loads((folder / "model_index.json").read_text())
    kind = str(index.get("_class_name", ""))
    if not kind.startswith("StableDiffusion") or "XL" in kind or "3" in kind:
        raise ModelLoadError(
            f"{folder} is a {kind or 'nameless pipeline'}, not Stable Diffusion 1.x"
        )
    for part in (*_PARTS, "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise ModelLoadError(f"{folder} has no folder {part!r}: the download is incomplete")
    for part in _PARTS:
        if not any((folder / part).glob("*.safetensors")):
            raise ModelLoadError(
                f"{folder / part} has no .safetensors file (pickles can run code and are not read)"
            )


def _check_architecture(folder: Path, parts: dict[str, Any]) -> None:
    wanted, got = parts["unet"].config.cross_attention_dim, parts["text_encoder"].config.hidden_size
    if wanted != got:
        raise ModelLoadError(
            f"{folder}: the U-Net reads text of width {wanted}, the text encoder gives {got}"
        )
    channels = parts["unet"].config.in_channels
    if channels != parts["vae"].config.latent_channels:
        raise ModelLoadError(
            f"{folder}: the U-Net reads {channels} channels, the VAE's latents have "
            f"{parts['vae'].config.latent_channels}; inpainting and depth models are not for this"
        )
