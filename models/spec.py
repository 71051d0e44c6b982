"""The model that an operator asks for: its weights and what goes with them. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

EMBEDDED = "embedded"
PRODUCTION_MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"


class AccelerationMode(StrEnum):
    """A way to make a model fast: `models/acceleration/modes.py` says what each does."""

    OFF = "off"
    GRAPHS = "graphs"
    COMPILE = "compile"
    MAX = "max"


Prediction = Literal["auto", "epsilon", "v_prediction"]
Quantization = Literal["off", "int8", "fp8"]


@dataclass(frozen=True)
class ModelSpec:
    """The weights to load.

    ``model`` is ``embedded``, a folder in diffusers' layout, a ``.safetensors`` checkpoint in the
    original (LDM) layout, or a hub id, which ``revision`` pins. ``prediction`` ``auto`` believes
    the folder, a configuration beside the file or its metadata, else epsilon.
    ``zero_terminal_snr`` says that the noise of the training ended in pure noise, where the folder
    or the file does not. ``ema`` takes the averaged U-Net of a checkpoint that carries both.
    ``vae`` is a folder or a file that replaces the autoencoder, ``preview_vae`` one of an
    AutoencoderTiny that draws previews alone, ``loras`` are files with the weights at which they
    are fused, in this order, and ``embeddings`` is a folder of textual inversions. ``quantize`` is
    the number format of linear layers of the U-Net (see `models.acceleration.quantization`).
    """

    model: str = EMBEDDED
    revision: str | None = None
    prediction: Prediction = "auto"
    zero_terminal_snr: bool = False
    ema: bool = False
    vae: str | None = None
    preview_vae: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    embeddings: str | None = None
    quantize: Quantization = "off"
