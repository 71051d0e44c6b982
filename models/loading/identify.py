"""Identification of a safetensors file by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import Enum

from models.loading.ldm_keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from models.loading.weights_file import TensorInfo, WeightsFile

_GET_SD1 = "use a Stable Diffusion 1.x checkpoint"
_GET_PLAIN = "use the plain Stable Diffusion 1.x checkpoint it was made from"


class Contents(Enum):
    """The kind of a file: in words, and what to do with it where a checkpoint is wanted."""

    CHECKPOINT = ("a Stable Diffusion 1.x checkpoint", "name it as IMG2IMG_MODEL")
    INPAINTING = ("an inpainting checkpoint (its U-Net reads 9 channels)", _GET_PLAIN)
    PIX2PIX = ("an InstructPix2Pix checkpoint (its U-Net reads 8 channels)", _GET_PLAIN)
    OTHER_CHANNELS = ("a checkpoint whose U-Net does not read 4 channels", _GET_PLAIN)
    SD2 = ("a Stable Diffusion 2.x checkpoint", _GET_SD1)
    SDXL = ("a Stable Diffusion XL checkpoint", _GET_SD1)
    SD3 = ("a Stable Diffusion 3 checkpoint", _GET_SD1)
    FLUX = ("a Flux checkpoint", _GET_SD1)
    LORA = (
        "a LoRA, a small change to a model and no model",
        "name it in IMG2IMG_LORAS and a checkpoint as IMG2IMG_MODEL",
    )
    LYCORIS = (
        "a LyCORIS file (LoHa, LoKr, OFT or another that is not a plain LoRA)",
        "use a LoRA or LoCon of it, or a checkpoint into which it is merged",
    )
    CONTROLNET = ("a ControlNet, which this server has no use for", _GET_SD1)
    ADAPTER = ("an adapter (IP-Adapter or motion module), no model", _GET_SD1)
    EMBEDDING = (
        "a textual inversion",
        "put it into the folder that IMG2IMG_EMBEDDINGS names",
    )
    LDM_VAE = ("a VAE alone, in the original layout", "name it as IMG2IMG_VAE, and a model")
    DIFFUSERS_VAE = ("a VAE alone, in diffusers' layout", "name it as IMG2IMG_VAE, and a model")
    TINY_VAE = (
        "a tiny VAE (AutoencoderTiny) alone",
        "name it as IMG2IMG_VAE, and a model",
    )
    HALF_TINY_VAE = (
        "one half of a tiny VAE (TAESD) in its original layout",
        "use AutoencoderTiny's folder in diffusers' layout, which has both halves",
    )
    LDM_UNET = ("a U-Net alone", "use the checkpoint with its VAE and text encoder")
    DIFFUSERS_UNET = (
        "the U-Net alone of a folder in diffusers' layout",
        "name the whole folder (the one with model_index.json)",
    )
    TEXT_ENCODER = ("a text encoder alone", "use the whole checkpoint")
    UNKNOWN = ("a safetensors file of a kind unknown here", _GET_SD1)

    @property
    def words(self) -> str:
        return self.value[0]

    @property
    def advice(self) -> str:
        return self.value[1]


_LORA = re.compile(
    r"\.lora_(?:down|up|mid)\.weight$|\.lora_[AB](?:\.[^.]+)?\.weight$|"
    r"(?:_lora|\.lora|\.lora_linear_layer)\.(?:down|up)\.weight$"
)
_LYCORIS = re.compile(
    r"\.(?:hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|lokr_t2|oft_blocks|oft_diag|dora_scale|diff|"
    r"diff_b|w_norm|b_norm|set_weight|lora_[AB](?:\.[^.]+)?\.bias|"
    r"lora_magnitude_vector(?:\.[^.]+)*|a1\.weight|on_input)$"
)
_ADAPTERS = ("ip_adapter.", "image_proj.", "image_proj_model.")


def identify(file: WeightsFile) -> Contents:
    """Return what the file is; UNKNOWN where nothing fits."""
    names = file.tensors
    if _any(names, lambda n: _LYCORIS.search(n) is not None):
        return Contents.LYCORIS
    if _any(names, lambda n: _LORA.search(n) is not None):
        return Contents.LORA
    if _any(names, _is_controlnet):
        return Contents.CONTROLNET
    if _any(names, lambda n: n.startswith(_ADAPTERS) or ".motion_modules." in n):
        return Contents.ADAPTER
    if _is_embedding(file):
        return Contents.EMBEDDING
    if _any(names, lambda n: ".joint_blocks." in f".{n}"):
        return Contents.SD3
    if _any(names, lambda n: ".double_blocks." in f".{n}"):
        return Contents.FLUX
    if f"{UNET_PREFIX}input_blocks.0.0.weight" in names:
        return _checkpoint(file)
    return _part(file)


def _is_controlnet(name: str) -> bool:
    return name.startswith(
        ("control_model.", "controlnet_cond_embedding.", "input_hint_block.", "controlnet_")
    )


def _checkpoint(file: WeightsFile) -> Contents:
    names = file.tensors
    if _any(names, lambda n: n.startswith("conditioner.embedders.")):
        return Contents.SDXL
    width = _text_width(file)
    if width in (2048, 1280):
        return Contents.SDXL
    if width == 1024 or _any(names, lambda n: n.startswith("cond_stage_model.model.")):
        return Contents.SD2
    channels = _inputs(names[f"{UNET_PREFIX}input_blocks.0.0.weight"])
    kinds = {4: Contents.CHECKPOINT, 8: Contents.PIX2PIX, 9: Contents.INPAINTING}
    return kinds.get(channels, Contents.OTHER_CHANNELS)


def _text_width(file: WeightsFile) -> int:
    """The width of the text that the U-Net reads, 0 if it reads none."""
    for name, tensor in file.tensors.items():
        if name.startswith(UNET_PREFIX) and name.endswith("attn2.to_k.weight"):
            return _inputs(tensor)
    return 0


def _inputs(weight: TensorInfo) -> int:
    """Return the inputs of a layer's weight; 0 of a tensor that is no weight of a layer."""
    return weight.shape[1] if len(weight.shape) > 1 else 0


def _part(file: WeightsFile) -> Contents:
    names = file.tensors
    if "input_blocks.0.0.weight" in names:
        return Contents.LDM_UNET
    if "conv_in.weight" in names and "time_embedding.linear_1.weight" in names:
        return Contents.DIFFUSERS_UNET
    for prefix in ("", VAE_PREFIX):
        if f"{prefix}decoder.mid.block_1.conv1.weight" in names:
            return Contents.LDM_VAE
    if "decoder.mid_block.resnets.0.conv1.weight" in names:
        return Contents.DIFFUSERS_VAE
    if _any(names, lambda n: n.startswith("decoder.layers.")):
        return Contents.TINY_VAE
    if "1.conv.0.weight" in names or "3.conv.0.weight" in names:
        return Contents.HALF_TINY_VAE
    if _any(names, lambda n: n.startswith((TEXT_PREFIX, "text_model.", "cond_stage_model."))):
        return Contents.TEXT_ENCODER
    return Contents.UNKNOWN


def _is_embedding(file: WeightsFile) -> bool:
    """Few vectors and no layers: ``emb_params``, or a vector or matrix for each word."""
    names = file.tensors
    if not names or len(names) > 16:
        return False
    if "emb_params" in names or "clip_l" in names or "clip_g" in names:
        return True
    return all(
        len(tensor.shape) in (1, 2)
        and tensor.shape[-1] >= 32
        and not name.endswith((".weight", ".bias", ".alpha"))
        for name, tensor in names.items()
    )


def _any(names: Iterable[str], test: Callable[[str], bool]) -> bool:
    return any(test(name) for name in names)
