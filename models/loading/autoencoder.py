"""Another VAE than the model's own: a folder or a file, AutoencoderKL or AutoencoderTiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.errors import ModelLoadError
from models.loading import checkpoint
from models.loading.folder import part_files
from models.loading.identify import Contents, identify
from models.loading.parts import diffusers_vae_names, fill, make_vae
from models.loading.weights_file import WeightsFile, refuse_pickle

TILE_SIDE = 512
"""Pixels to a side of a tile, where a picture is encoded and decoded in tiles."""


def load_autoencoder(
    where: str, configuration: Path, *, device: torch.device, dtype: torch.dtype
) -> Any:
    """Load the VAE that ``where`` names.

    A folder holds ``config.json`` and weights, itself or in its ``vae``. A file is a VAE in LDM's
    or diffusers' layout, or a checkpoint, of which only the VAE is taken; it is configured by a
    ``config.json`` beside it if there is one, else as Stable Diffusion 1.x (a tiny one: by
    diffusers' defaults). Raises ModelLoadError.
    """
    path = Path(where).expanduser()
    what = f"the VAE {path}"
    if path.is_dir():
        folder = path if (path / "config.json").is_file() else path / "vae"
        if not (folder / "config.json").is_file():
            raise ModelLoadError(f"{path} holds no VAE: neither it nor its vae has a config.json")
        files = part_files(folder, dtype)
        return fill(
            make_vae(folder), files, diffusers_vae_names, device=device, dtype=dtype, what=what
        )
    if not path.is_file():
        refuse_pickle(path)
        raise ModelLoadError(f"{where} is neither a folder nor a file; a VAE is one of the two")
    file = WeightsFile.open(path)
    contents = identify(file)
    if contents is Contents.LDM_VAE or (
        contents is Contents.CHECKPOINT and checkpoint.has_vae(file)
    ):
        return checkpoint.load_vae(file, configuration, device=device, dtype=dtype)
    if contents not in (Contents.DIFFUSERS_VAE, Contents.TINY_VAE):
        advice = f": {contents.advice}" if contents is Contents.HALF_TINY_VAE else ""
        raise ModelLoadError(f"{path} is {contents.words}, not a VAE{advice}")
    vae = _without_weights(path, contents, configuration)
    return fill(vae, [file], diffusers_vae_names, device=device, dtype=dtype, what=what)


def _without_weights(path: Path, contents: Contents, configuration: Path) -> Any:
    if (path.parent / "config.json").is_file():
        return make_vae(path.parent)
    if contents is Contents.TINY_VAE:
        return make_vae(checkpoint.SD15_FOLDER / "tiny_vae")
    return make_vae(configuration / "vae")
