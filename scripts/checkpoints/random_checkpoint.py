"""Writes a Stable Diffusion 1.x checkpoint of random weights in the original (LDM) layout.

`models.loading.ldm_keys` gives the names. That they are LDM's own is checked by who reads the file:
diffusers' converter, see `converted_by_diffusers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models.loading import ldm_keys
from models.loading.parts import make_text_encoder, make_unet, make_vae


def random_parts(
    configuration: Path, dtype: torch.dtype, seed: int = 0
) -> dict[str, dict[str, torch.Tensor]]:
    """Random tensors for ``unet``, ``vae`` and ``text_encoder`` in diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    modules = {
        "unet": make_unet(configuration / "unet"),
        "vae": make_vae(configuration / "vae"),
        "text_encoder": make_text_encoder(configuration / "text_encoder"),
    }
    return {
        part: {
            name: torch.empty(value.shape, dtype=dtype).normal_(0, 0.02, generator=generator)
            for name, value in module.state_dict().items()
        }
        for part, module in modules.items()
    }


def to_ldm(
    parts: Mapping[str, Mapping[str, torch.Tensor]],
    configuration: Path,
    ema: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The parts under LDM's names; ``ema``: an averaged copy of the U-Net, in diffusers' names."""
    unet, vae = _config(configuration / "unet"), _config(configuration / "vae")
    layers, up_blocks = unet["layers_per_block"], unet["up_block_types"]
    blocks = len(vae["block_out_channels"])
    file: dict[str, torch.Tensor] = {}
    for name, tensor in parts["unet"].items():
        file[ldm_keys.UNET_PREFIX + ldm_keys.unet_name(name, layers, up_blocks)] = tensor
    for name, tensor in (ema or {}).items():
        file[ldm_keys.ema_name(ldm_keys.unet_name(name, layers, up_blocks))] = tensor
    if ema:
        file |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1)}
    for name, tensor in parts["vae"].items():
        linear = ".attentions." in name and name.endswith(".weight") and tensor.ndim == 2
        # LDM's VAE has 1 x 1 convolutions where diffusers has linear layers.
        value = tensor[:, :, None, None] if linear else tensor
        file[ldm_keys.VAE_PREFIX + ldm_keys.vae_name(name, blocks)] = value
    for name, tensor in parts["text_encoder"].items():
        file[f"{ldm_keys.TEXT_PREFIX}text_model.{name}"] = tensor
    # What else such files carry: position ids, and the noise schedule of the training.
    positions = torch.arange(77)[None]
    file[f"{ldm_keys.TEXT_PREFIX}text_model.embeddings.position_ids"] = positions
    file["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return file


def write_checkpoint(
    path: Path,
    configuration: Path,
    *,
    dtype: torch.dtype = torch.float16,
    ema: bool = False,
    seed: int = 0,
    metadata: dict[str, str] | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """Write the file; what is in it by part, in diffusers' names, and ``ema`` if asked for."""
    parts = random_parts(configuration, dtype, seed)
    averaged = random_parts(configuration, dtype, seed + 1)["unet"] if ema else None
    save_file(to_ldm(parts, configuration, averaged), path, metadata=metadata)
    return parts | ({"ema": averaged} if averaged else {})


def converted_by_diffusers(
    path: Path, configuration: Path, *, ema: bool = False
) -> dict[str, dict[str, torch.Tensor]]:
    """The file's parts in diffusers' names, by diffusers' own converter."""
    from diffusers.loaders import single_file_utils as converter

    file = load_file(path)
    text = converter.convert_ldm_clip_checkpoint(file)
    vae_names = [name for name in file if name.startswith(ldm_keys.VAE_PREFIX)]
    return {
        "unet": converter.convert_ldm_unet_checkpoint(
            file, _config(configuration / "unet"), extract_ema=ema
        ),
        "vae": converter.convert_ldm_vae_checkpoint(
            {name: file[name] for name in vae_names}, _config(configuration / "vae")
        ),
        "text_encoder": {
            name.removeprefix("text_model."): tensor
            for name, tensor in text.items()
            if not name.endswith("position_ids")
        },
    }


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))
