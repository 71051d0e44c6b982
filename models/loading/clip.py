"""Load a folder of CLIP, text and image tower, in transformers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.clip import ClipModel
from models.errors import ModelLoadError
from models.loading.folder import part_files
from models.loading.json_files import read_object
from models.loading.parts import fill, make_clip, transformers_clip_names

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""How OpenAI's models want their pixels, where a folder does not say (Radford et al. 2021)."""


def load_clip(
    folder: Path, *, name: str, device: torch.device, dtype: torch.dtype, tokenizer: Any = None
) -> ClipModel:
    """Load a folder in transformers' layout, safetensors only.

    ``tokenizer`` is used where the folder has none. Raises ModelLoadError, ValueError where no
    tokenizer fits, and what transformers raises of one.
    """
    from transformers import CLIPTokenizer

    model = fill(
        make_clip(folder),
        part_files(folder, dtype),
        transformers_clip_names,
        device=device,
        dtype=dtype,
        what=str(folder),
    )
    if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer is None:
        raise ValueError("it has no tokenizer")
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise ValueError(
            f"its tokenizer knows {len(tokenizer)} tokens, its text tower "
            f"{model.config.text_config.vocab_size}"
        )
    mean, std = normalization(folder / "preprocessor_config.json")
    return ClipModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        mean=mean.to(device),
        std=std.to(device),
    )


def load_beside(
    folder: Path, device: torch.device, dtype: torch.dtype, tokenizer: Any = None, name: str = ""
) -> ClipModel:
    """A CLIP folder for a model that runs in ``dtype``. Raises ModelLoadError.

    float32 on the CPU whatever the model runs in: it is small beside the U-Net, and what it
    gives is a gradient.
    """
    precision = torch.float32 if device.type == "cpu" else dtype
    try:
        return load_clip(
            folder, name=name or folder.name, device=device, dtype=precision, tokenizer=tokenizer
        )
    except Exception as error:  # whatever a library makes of a bad file
        raise ModelLoadError(f"{folder} is not a CLIP model that loads: {error}") from error


def normalization(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and deviation, (3,) each, that a preprocessor's file says; else OpenAI's.

    Raises ModelLoadError.
    """
    config = read_object(file) if file.is_file() else {}
    try:
        mean = torch.tensor(config.get("image_mean", OPENAI_MEAN), dtype=torch.float32)
        std = torch.tensor(config.get("image_std", OPENAI_STD), dtype=torch.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelLoadError(f"{file}: image_mean or image_std is no list of numbers") from error
    both = torch.stack([mean, std]) if mean.shape == std.shape == (3,) else torch.zeros(0)
    if not both.numel() or not bool(torch.isfinite(both).all()) or bool((std <= 0).any()):
        raise ModelLoadError(f"{file}: image_mean and image_std are not three numbers each")
    return mean, std
