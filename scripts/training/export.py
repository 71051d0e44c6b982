"""Write the trained parts as a diffusers folder in float16, file by file."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import PNDMScheduler
from safetensors.torch import load_file

from scripts.training.clip import (
    IMAGE_SIDE,
    WithHeads,
    finished_clip,
    make_clip,
    make_tokenizer,
    text_tower,
)
from scripts.training.trainer import load_checkpoint, save_checkpoint
from scripts.training.unet import make_unet
from scripts.training.vae import finished_vae

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

UNPACKING = "unpacking"
"""The file that a training folder has until all that `unpack` writes is there."""

CLIP_PIXELS = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 2,
    "size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""How CLIP's image tower wants its pixels: squashed to a square, in -1..1."""


def export(training: Path, output: Path, start_share: float = 0.5) -> None:
    """Write ``output`` from the checkpoints under ``training``; a file is replaced whole.

    The U-Net is a mean of its averaged weights and, for ``start_share`` of it, of the weights that
    its run started from: a mean of weights that come from one another is better than either.
    """
    cpu = torch.device("cpu")
    tokenizer = make_tokenizer(training / "tokenizer")
    clip = finished_clip(training / "clip", tokenizer)
    text_encoder = text_tower(clip)
    unet = make_unet(text_encoder.config.hidden_size)
    saved = load_checkpoint(training / "unet")
    weights = {**saved["model"], **saved["averages"]}
    for name, start in saved.get("start", {}).items():
        weights[name] = torch.lerp(weights[name], start, start_share)
    unet.load_state_dict(weights)
    parts: dict[str, Any] = {
        "vae": finished_vae(training / "vae", cpu),
        "unet": unet,
        "text_encoder": text_encoder,
        "clip": clip,
        "scheduler": PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "tokenizer": tokenizer,
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name, part in parts.items():
            half: Any = part.half() if isinstance(part, torch.nn.Module) else part
            half.save_pretrained(Path(temporary) / name)
        # transformers loads in the dtype that the configuration names, diffusers in float32.
        # Without this a pipeline loaded with no dtype mixes the two and cannot run.
        for name in ("text_encoder", "clip"):
            path = Path(temporary) / name / "config.json"
            path.write_text(path.read_text().replace('"float16"', '"float32"'))
        for file in Path(temporary).rglob("*"):
            if file.is_file():
                target = output / file.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target.with_suffix(".new"))
                target.with_suffix(".new").rename(target)
    pixels = json.dumps(CLIP_PIXELS, indent=2) + "\n"
    (output / "clip" / "preprocessor_config.json").write_text(pixels)
    (output / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    # What from_pretrained reads of a tokenizer; the folder of training has it in CLIP's own files.
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(training / "tokenizer" / name, output / "tokenizer" / name)
    total = sum(f.stat().st_size for f in output.rglob("*") if f.is_file())
    print(f"{output}: step {saved['step']}, {total / 2**20:.1f} MiB")


def unpack(exported: Path, training: Path) -> None:
    """Make the checkpoints that ``training`` has not from an exported folder, to train on from.

    They have the weights alone: steps count from 0 again and the optimiser starts anew. CLIP's
    image tower and projections come along; the heads that only its training has are drawn anew.
    """
    training.mkdir(parents=True, exist_ok=True)
    (training / UNPACKING).touch()
    for name in ("vae", "unet"):
        if _is_missing(training / name):
            weights = load_file(exported / name / "diffusion_pytorch_model.safetensors")
            _write_checkpoint(training / name, weights)
    if _is_missing(training / "clip"):
        shutil.copytree(exported / "tokenizer", training / "tokenizer", dirs_exist_ok=True)
        model = WithHeads(make_clip(make_tokenizer(training / "tokenizer")))
        weights = load_file(exported / "clip" / "model.safetensors")
        model.clip.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
        _write_checkpoint(training / "clip", model.state_dict())
    (training / UNPACKING).unlink()


def _is_missing(folder: Path) -> bool:
    if (folder / "checkpoint.pt").exists():
        print(f"{folder}: has a checkpoint, which stays as it is")
        return False
    return True


def _write_checkpoint(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    model = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    save_checkpoint(folder, {"model": model, "optimiser": None, "step": 0, "averages": {}})
