"""A checkpoint in one file, in the original (LDM) layout, as model sites offer it.

Its configuration and tokenizer come from ``models/sd15``: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.errors import ModelLoadError
from models.loading import ldm_keys
from models.loading.identify import Contents, identify
from models.loading.json_files import read_object
from models.loading.ldm_yaml import prediction_beside
from models.loading.parts import fill, make_text_encoder, make_unet, make_vae
from models.loading.weights_file import WeightsFile
from models.noise_schedule import NoiseSchedule

SD15_FOLDER = Path(__file__).parents[1] / "sd15"


def open_checkpoint(path: Path) -> WeightsFile:
    """A Stable Diffusion 1.x checkpoint. Raises ModelLoadError, which says what else it is."""
    file = WeightsFile.open(path)
    contents = identify(file)
    if contents is not Contents.CHECKPOINT:
        detail = ""
        if contents is Contents.UNKNOWN:
            detail = f" (tensors such as {', '.join(sorted(file.tensors)[:3]) or 'none at all'})"
        raise ModelLoadError(f"{path} is {contents.words}{detail}: {contents.advice}")
    return file


def load_unet(
    file: WeightsFile,
    configuration: Path,
    *,
    ema: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """The U-Net of a checkpoint; with ``ema`` its averaged copy. Raises ModelLoadError."""
    if ema and not has_ema(file):
        raise ModelLoadError(
            f"{file.path} carries no averaged (EMA) weights: leave IMG2IMG_EMA unset"
        )
    unet = make_unet(configuration / "unet")
    layers, up_blocks = int(unet.config.layers_per_block), unet.config.up_block_types

    def names(name: str) -> Sequence[str]:
        ldm = ldm_keys.unet_name(name, layers, up_blocks)
        return (ldm_keys.ema_name(ldm) if ema else ldm_keys.UNET_PREFIX + ldm,)

    return fill(unet, [file], names, device=device, dtype=dtype, what=f"the U-Net of {file.path}")


def has_ema(file: WeightsFile) -> bool:
    """Return whether the file carries the U-Net's averaged weights beside the trained ones."""
    return ldm_keys.ema_name("input_blocks.0.0.weight") in file.tensors


def has_vae(file: WeightsFile) -> bool:
    return f"{ldm_keys.VAE_PREFIX}decoder.conv_in.weight" in file.tensors


def load_vae(
    file: WeightsFile, configuration: Path, *, device: torch.device, dtype: torch.dtype
) -> Any:
    """The VAE of a checkpoint or of a file that is a VAE in LDM's layout. Raises ModelLoadError."""
    vae = make_vae(configuration / "vae")
    blocks = len(vae.config.block_out_channels)

    def names(name: str) -> Sequence[str]:
        ldm = ldm_keys.vae_name(name, blocks)
        return (ldm_keys.VAE_PREFIX + ldm, ldm)

    return fill(vae, [file], names, device=device, dtype=dtype, what=f"the VAE of {file.path}")


def load_text_encoder(
    file: WeightsFile, configuration: Path, *, device: torch.device, dtype: torch.dtype
) -> Any:
    """The text encoder of a checkpoint. Raises ModelLoadError."""
    if not any(name.startswith(ldm_keys.TEXT_PREFIX) for name in file.tensors):
        raise ModelLoadError(
            f"{file.path} has no text encoder: it is a part of a checkpoint, use the whole one"
        )

    def names(name: str) -> Sequence[str]:
        # Some tools write the names that transformers had before 4.x, without `text_model`.
        return (f"{ldm_keys.TEXT_PREFIX}text_model.{name}", ldm_keys.TEXT_PREFIX + name)

    what = f"the text encoder of {file.path}"
    encoder = make_text_encoder(configuration / "text_encoder")
    return fill(encoder, [file], names, device=device, dtype=dtype, what=what)


def prediction_of(file: WeightsFile) -> tuple[str, str]:
    """(what the U-Net predicts, why that is believed): ``epsilon`` or ``v_prediction``.

    The original layout says nothing of it: its configuration does, which may lie beside the file
    and is its owner's word. Newer files may say it in their metadata
    (https://github.com/Stability-AI/ModelSpec) or by an empty tensor named ``v_pred``. Raises
    ModelLoadError for a configuration that is not usable.
    """
    if (told := prediction_beside(file.path)) is not None:
        prediction, name = told
        return prediction, f"{name} beside the file"
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction", "v-prediction", "vpred"):
        return "v_prediction", "the file's metadata"
    if said == "epsilon":
        return "epsilon", "the file's metadata"
    if "v_pred" in file.tensors:
        return "v_prediction", "the file's v_pred mark"
    return "epsilon", "the usual, the file does not say"


def wants_zero_snr(file: WeightsFile) -> bool:
    """Return whether a mark says that the noise schedule of the training reached pure noise."""
    return "ztsnr" in file.tensors


def scheduler_config(configuration: Path, **known: Any) -> dict[str, Any]:
    """Return what ``scheduler_config.json`` says, but for what is ``known`` better.

    Raises ModelLoadError for a noise schedule that this server does not understand.
    """
    path = configuration / "scheduler" / "scheduler_config.json"
    config = {**read_object(path), **known}
    try:
        NoiseSchedule.from_config(config)
    except ValueError as error:
        raise ModelLoadError(f"{path}: {error}") from error
    return config
