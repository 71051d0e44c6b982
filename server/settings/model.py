"""The weights, what is put into them, and the models beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from models.spec import ModelSpec, Quantization
from server.settings.base import Choice, StringList, Subject
from server.settings.values import split_lora


class ModelSettings(Subject):
    """What is loaded, in which dtype, on which device."""

    model: str = Field(
        "embedded",
        min_length=1,
        description="Weights: `embedded`, a folder in diffusers' layout, a `.safetensors` "
        "checkpoint, or a hub id.",
    )
    model_revision: str | None = Field(
        None, description="Revision (commit or tag) of a hub model; pins what is downloaded."
    )
    prediction: Annotated[Literal["auto", "epsilon", "v_prediction"], Choice] = Field(
        "auto",
        description="What the U-Net predicts, `epsilon` or `v_prediction`; auto believes the "
        "folder, a configuration beside the file or its metadata, else epsilon.",
    )
    zero_terminal_snr: bool = Field(
        False,
        description="The model was trained up to pure noise (zero terminal SNR), where the folder "
        "or the file does not say so.",
    )
    ema: bool = Field(
        False, description="Take the averaged (EMA) U-Net of a checkpoint that carries both."
    )
    vae: str | None = Field(
        None,
        description="Another VAE, a folder or a `.safetensors` file: AutoencoderKL, or "
        "AutoencoderTiny for speed.",
    )
    preview_vae: str | None = Field(
        None,
        description="A tiny VAE that draws the previews of unfinished pictures, a folder or a "
        "`.safetensors` file of an AutoencoderTiny; blank: a linear map, which costs nothing.",
    )
    loras: StringList = Field(
        (),
        description="LoRA files that are fused into the model, each with its weight behind a "
        "colon: `a.safetensors:0.8` (1 if left out).",
    )
    embeddings: str | None = Field(
        None, description="Folder of textual inversions; a file's name is its word in a prompt."
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` and so on.")
    dtype: str = Field(
        "auto", description="`auto`, `float32`, `float16` or `bfloat16`; auto takes the fastest."
    )
    quantize: Annotated[Quantization, Choice] = Field(
        "off",
        description="Number format of the U-Net's linear layers: `off`, `int8`, or `fp8` (CUDA of "
        "compute capability 8.9 or higher, with `IMG2IMG_DTYPE=bfloat16`). Pictures change a "
        "little. Needs the extra `quantize`.",
    )

    clip_model: str = Field(
        "auto",
        min_length=1,
        description="CLIP model for `clip_guidance_preset`: `auto`, `none`, a folder or a hub id. "
        "`auto` is the model's own if it ships one, else `openai/clip-vit-large-patch14`: "
        "downloaded for a hub model, only if cached already for a local one.",
    )

    safety: Annotated[Literal["off", "blur", "block"], Choice] = Field(
        "off",
        description="What happens to pictures that the safety checker finds unsafe: `off` (no "
        "check), `blur`, or `block` (answered with code -1).",
    )
    safety_checker: str = Field(
        "auto",
        min_length=1,
        description="Safety checker: `auto` (the one that the model ships), a folder or a hub id.",
    )
    safety_threshold: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="Score above which a picture is unsafe; higher lets more pass. Every score is "
        "in the log.",
    )
    prompt_deny_list: Path | None = Field(
        None,
        description="File of words and phrases, one a line, that neither prompt may hold.",
    )

    @field_validator("loras")
    @classmethod
    def _lora_weights(cls, loras: tuple[str, ...]) -> tuple[str, ...]:
        for text in loras:
            split_lora(text)
        return loras

    @property
    def model_spec(self) -> ModelSpec:
        """The weights that these settings name."""
        return ModelSpec(
            model=self.model,
            revision=self.model_revision,
            prediction=self.prediction,
            zero_terminal_snr=self.zero_terminal_snr,
            ema=self.ema,
            vae=self.vae,
            preview_vae=self.preview_vae,
            loras=tuple(split_lora(text) for text in self.loras),
            embeddings=self.embeddings,
            quantize=self.quantize,
        )
