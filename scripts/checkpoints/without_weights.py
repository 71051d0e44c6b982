"""Stable Diffusion 1.5 of full size without its weights: for counting, not for computing."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTokenizer

from models.bundle import ModelBundle
from models.loading.checkpoint import SD15_FOLDER
from models.loading.parts import make_text_encoder, make_unet, make_vae


def bundle_without_weights(
    dtype: torch.dtype = torch.float16, device: str = "cuda", vae: Path = SD15_FOLDER / "vae"
) -> ModelBundle:
    """All parts on the meta device, the bundle saying that it is on ``device``, which need not be.

    ``vae`` is the folder of the autoencoder's configuration.
    """
    unet = make_unet(SD15_FOLDER / "unet")
    autoencoder = make_vae(vae)
    text_encoder = make_text_encoder(SD15_FOLDER / "text_encoder")
    for part in (unet, autoencoder, text_encoder):
        for parameter in part.parameters():
            parameter.data = parameter.data.to(dtype)
    return ModelBundle(
        "Stable Diffusion 1.5 without weights",
        unet,
        autoencoder,
        text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(SD15_FOLDER / "tokenizer", local_files_only=True),
        scheduler_config={},
        device=torch.device(device),
        dtype=dtype,
    )
