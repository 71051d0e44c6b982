"""A folder in diffusers' layout: is it one, is it whole, and its parts' weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from models.errors import ModelLoadError
from models.weights_file import WeightsFile

PARTS = ("unet", "vae", "text_encoder")


def check_layout(folder: Path) -> None:
    """Raises ModelLoadError, which says what is missing or different."""
    if not (folder / "model_index.json").is_file():
        raise ModelLoadError(
            f"{folder} has no model_index.json: not a diffusers folder{_hint(folder)}"
        )
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        kind = str(index.get("_class_name", ""))
    except (OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{folder / 'model_index.json'} cannot be read: {error}") from error
    if not kind.startswith("StableDiffusion") or "XL" in kind or "3" in kind:
        raise ModelLoadError(
            f"{folder} is a {kind or 'nameless pipeline'}, not Stable Diffusion 1.x"
        )
    for part in (*PARTS, "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise ModelLoadError(f"{folder} has no folder {part!r}: the download is incomplete")
    for part in PARTS:
        if not any((folder / part).glob("*.safetensors")):
            raise ModelLoadError(
                f"{folder / part} has no .safetensors file (pickles can run code and are not read)"
            )


def _hint(folder: Path) -> str:
    """The checkpoint that was probably meant."""
    files = sorted(folder.glob("*.safetensors"))
    return f"; name a file in it, such as {files[0]}" if files else ""


def part_files(folder: Path, dtype: torch.dtype) -> list[WeightsFile]:
    """The weights of a part: the fp16 variant for float16 where there is one, else the plain ones.

    Raises ModelLoadError.
    """
    found = sorted(folder.glob("*.safetensors"))
    half = [file for file in found if ".fp16" in file.name]
    plain = [file for file in found if "." not in file.name.removesuffix(".safetensors")]
    if half and (dtype is torch.float16 or not plain):
        plain = half
    if not plain:
        raise ModelLoadError(f"{folder} has no .safetensors file that is plain or fp16")
    return [WeightsFile.open(file) for file in plain]
