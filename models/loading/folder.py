"""A folder in diffusers' layout: is it one, is it whole, and its parts' weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath, PureWindowsPath

import torch

from models.errors import ModelLoadError
from models.loading.json_files import read_object
from models.loading.weights_file import WeightsFile

PARTS = ("unet", "vae", "text_encoder")


def check_layout(folder: Path) -> None:
    """Raises ModelLoadError, which says what is missing or different."""
    if not (folder / "model_index.json").is_file():
        raise ModelLoadError(
            f"{folder} has no model_index.json: not a diffusers folder{_hint(folder)}"
        )
    kind = str(read_object(folder / "model_index.json").get("_class_name", ""))
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


def variants(files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the names of a part's fp16 weights, and those of its plain ones."""
    weights = [file for file in files if file.endswith(".safetensors")]
    half = [file for file in weights if ".fp16" in PurePath(file).name]
    plain = [f for f in weights if "." not in PurePath(f).name.removesuffix(".safetensors")]
    return half, plain


def part_files(folder: Path, dtype: torch.dtype) -> list[WeightsFile]:
    """The weights of a part: the fp16 variant for float16 where there is one, else the plain ones.

    They are those that lie in the folder, whatever an index names; one that names any others is
    refused. Raises ModelLoadError.
    """
    _check_indexes(folder)
    half, plain = variants(sorted(file.name for file in folder.glob("*.safetensors")))
    chosen = half if half and (dtype is torch.float16 or not plain) else plain
    if not chosen:
        raise ModelLoadError(f"{folder} has no .safetensors file that is plain or fp16")
    return [WeightsFile.open(folder / name) for name in chosen]


def _check_indexes(folder: Path) -> None:
    """Raises ModelLoadError for an index of shards that names what is no safetensors file here."""
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        shards = read_object(index).get("weight_map", {})
        if not isinstance(shards, dict):
            raise ModelLoadError(f"{index}: weight_map is no object")
        for shard in shards.values():
            name = str(shard)
            if not name.endswith(".safetensors"):
                raise ModelLoadError(f"{index} names {name!r}, which is no .safetensors file")
            if name != PureWindowsPath(name).name:
                raise ModelLoadError(f"{index} names {name!r}, which is outside its folder")
