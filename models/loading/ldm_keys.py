"""Names of tensors: diffusers' to those of the original layout (LDM, CompVis).

What model sites offer as one file is in the original layout. The maps go from a name of diffusers
to the name in the file, so that tensors can be read one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

UNET_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_BLOCK = re.compile(
    r"(?P<where>down_blocks|mid_block|up_blocks)(?:\.(?P<block>\d+))?"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_VAE_BLOCK = re.compile(
    r"(?P<half>encoder|decoder)\.(?P<where>down_blocks|mid_block|up_blocks)(?:\.(?P<block>\d+))?"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)


def unet_name(name: str, layers_per_block: int, up_block_types: Sequence[str]) -> str:
    """A U-Net's module or tensor of diffusers as LDM names it, without the prefix."""
    for ours, theirs in _UNET_ENDS.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    found = _UNET_BLOCK.fullmatch(name)
    if found is None:
        return name
    where, kind, layer, rest = found["where"], found["kind"], int(found["layer"]), found["rest"]
    if kind == "resnets":
        rest = _replaced(rest, _UNET_RESNET)
    if where == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{rest}"
    block = int(found["block"])
    if where == "down_blocks":
        index = 1 + block * (layers_per_block + 1)
        if kind == "downsamplers":
            return f"input_blocks.{index + layers_per_block}.0.{_replaced(rest, {'conv': 'op'})}"
        return f"input_blocks.{index + layer}.{0 if kind == 'resnets' else 1}.{rest}"
    index = block * (layers_per_block + 1)
    if kind == "upsamplers":
        place = 2 if "CrossAttn" in up_block_types[block] else 1
        return f"output_blocks.{index + layers_per_block}.{place}.{rest}"
    return f"output_blocks.{index + layer}.{0 if kind == 'resnets' else 1}.{rest}"


def ema_name(ldm_name: str) -> str:
    """The averaged copy of a U-Net's tensor: LDM stores it under its name without the dots."""
    return EMA_PREFIX + (UNET_PREFIX + ldm_name).removeprefix("model.").replace(".", "")


def vae_name(name: str, blocks: int) -> str:
    """A VAE's tensor of diffusers as LDM names it, without the prefix; ``blocks`` a half."""
    found = _VAE_BLOCK.fullmatch(name)
    if found is None:
        return name.replace("conv_norm_out", "norm_out")
    half, where, kind = found["half"], found["where"], found["kind"]
    layer, rest = int(found["layer"]), found["rest"]
    if kind == "resnets":
        rest = _replaced(rest, {"conv_shortcut": "nin_shortcut"})
    if where == "mid_block":
        if kind == "attentions":
            return f"{half}.mid.attn_1.{_replaced(rest, _VAE_ATTENTION)}"
        return f"{half}.mid.block_{layer + 1}.{rest}"
    block = int(found["block"])
    if where == "down_blocks":
        place = f"block.{layer}" if kind == "resnets" else "downsample"
        return f"{half}.down.{block}.{place}.{rest}"
    place = f"block.{layer}" if kind == "resnets" else "upsample"
    return f"{half}.up.{blocks - 1 - block}.{place}.{rest}"


def _replaced(rest: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if rest == ours or rest.startswith(f"{ours}."):
            return theirs + rest[len(ours) :]
    return rest
