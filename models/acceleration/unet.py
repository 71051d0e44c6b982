"""The U-Net of Stable Diffusion 1.x as a forward of our own, over the weights of diffusers' module.

The module stays as it is, for the CPU, for gradients, and wherever this cannot go: what it computes
is the same, in another order of summation. What differs is what no arithmetic needs: no copies
between layouts, no bias in a kernel of its own, one product for the time of all blocks and one for
the text's keys and values of all blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from models.acceleration.attention import Order, attend, fuse_projections, head_size
from models.acceleration.layers import (
    Convolution,
    Downsampling,
    Resnet,
    Upsampling,
    head,
    picture,
    pixels,
    product,
    split_last,
)
from models.acceleration.torch_kernels import Kernels

Tensor = torch.Tensor

_DOWN = {"DownBlock2D", "CrossAttnDownBlock2D"}
_MIDDLE = {"UNetMidBlock2DCrossAttn"}
_UP = {"UpBlock2D", "CrossAttnUpBlock2D"}

_CONFIG: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim_type": None,
    "mid_block_scale_factor": 1,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "upcast_attention": False,
    "use_linear_projection": False,
}
"""What the configuration must say: all that this forward takes for granted."""

_MODULES = {
    "Attention", "BasicTransformerBlock", "Conv2d", "Downsample2D", "Dropout", "FeedForward",
    "GEGLU", "GroupNorm", "LayerNorm", "Linear", "ModuleList", "ResnetBlock2D", "SiLU",
    "TimestepEmbedding", "Timesteps", "Transformer2DModel", "UNet2DConditionModel", "Upsample2D",
    *_DOWN, *_MIDDLE, *_UP,
}  # fmt: skip


def unsupported_reason(unet: Any) -> str | None:
    """Return why `FastUNet` does not compute what this U-Net does; None where it does."""
    for name, wanted in _CONFIG.items():
        got = unet.config.get(name, wanted)
        # Of what is false diffusers asks the truth alone, and its converter writes null.
        if got != wanted and not (wanted is False and got is None):
            return f"its {name} is {got!r}, not {wanted!r}"
    if unet.config.get("mid_block_only_cross_attention"):
        return "its mid_block_only_cross_attention is on"
    for module in unet.modules():
        # The exact class: a subclass (a quantised or adapted layer) computes something else.
        if type(module).__name__ not in _MODULES or not _of_known_home(module):
            return f"it has a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"a {type(module).__name__} of it has a hook"
        if reason := _unusual(module):
            return reason
    kinds = {(p.dtype, p.device, type(p.data)) for p in unet.parameters()}
    if len(kinds) != 1 or type(next(unet.parameters()).data) is not torch.Tensor:
        return "its weights are of more than one dtype, device or kind"
    return None


def _of_known_home(module: torch.nn.Module) -> bool:
    return type(module).__module__.split(".")[0] in {"torch", "diffusers"}


def _unusual(module: Any) -> str | None:
    """Return what a module has that 1.x's have not, where the configuration does not tell."""
    kind = type(module).__name__
    if kind == "Attention":
        parts = (
            "spatial_norm",
            "group_norm",
            "norm_q",
            "norm_k",
            "norm_cross",
            "added_kv_proj_dim",
        )
        odd = any(getattr(module, part, None) is not None for part in parts)
        if odd or module.residual_connection or module.rescale_output_factor != 1.0:
            return "its attention has norms or a residual of its own"
        if not math.isclose(module.scale, (module.inner_dim // module.heads) ** -0.5):
            return "its attention has a scale of its own"
    if kind == "BasicTransformerBlock":
        if module.norm_type != "layer_norm" or module.pos_embed is not None:
            return "its transformer blocks have other norms or positions"
        if module.attn2 is None or not module.attn2.is_cross_attention:
            return "its transformer blocks do not read text"
        if module.attn1.is_cross_attention or type(module.ff.net[0]).__name__ != "GEGLU":
            return "its transformer blocks have other parts"
    if kind == "Conv2d" and (
        module.padding_mode != "zeros" or module.dilation != (1, 1) or module.groups != 1
    ):
        return "its convolutions pad, dilate or group in another way"
    if kind in ("Upsample2D", "Downsample2D") and (
        module.norm is not None or not module.use_conv or module.name not in ("conv", "op")
    ):
        return "it samples up or down in another way"
    if kind in ("GroupNorm", "LayerNorm") and (module.weight is None or module.bias is None):
        return "its norms have no weights"
    if kind == "ResnetBlock2D" and (
        module.up or module.down or module.time_emb_proj is None or module.conv1.bias is None
    ):
        return "its residual blocks are of another kind"
    if kind == "ResnetBlock2D" and module.output_scale_factor != 1.0:
        return "its residual blocks scale their result"
    if kind == "Timesteps" and (module.num_channels % 2 or module.scale != 1):
        return "its timesteps are scaled, or an odd number of waves"
    return None


@dataclass(frozen=True, eq=False)
class _TextPlace:
    """The place of a cross attention's keys and values among those of all blocks."""

    first: int
    channels: int


class _Block:
    """A BasicTransformerBlock over (N, S, C) tokens."""

    def __init__(self, module: Any, place: _TextPlace, kernels: Kernels, orders: Any) -> None:
        self._kernels, self._place = kernels, place
        self._norms = (module.norm1, module.norm2, module.norm3)
        self._self, self._cross = module.attn1, module.attn2
        self._order = orders.get(head_size(module.attn1))
        self._up, self._down = module.ff.net[0].proj, module.ff.net[2]

    def __call__(self, x: Tensor, text: Tensor) -> Tensor:
        """``text`` (N, T, all channels) are the keys and values of all blocks."""
        kernels = self._kernels
        _, y = kernels.layer_norm(x, self._norms[0])
        qkv = product(y, self._self.to_qkv.weight, self._self.to_qkv.bias)
        query, key, value = split_last(qkv, 3, self._self.heads).unbind(2)
        x, y = kernels.layer_norm(self._attend(self._self, query, key, value), self._norms[1], x)
        query = product(y, self._cross.to_q.weight, self._cross.to_q.bias)
        query = split_last(query, self._cross.heads)
        place = self._place
        own = text[..., place.first : place.first + 2 * place.channels]
        key, value = split_last(own, 2, self._cross.heads).unbind(2)
        x, y = kernels.layer_norm(self._attend(self._cross, query, key, value), self._norms[2], x)
        y = kernels.geglu(product(y, self._up.weight, self._up.bias))
        return product(y, self._down.weight, self._down.bias).add_(x)

    def _attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, S, heads, D) each to (N, S, C)."""
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        out = attend(query, key, value, self._order).transpose(1, 2).flatten(2)
        return product(out, module.to_out[0].weight, module.to_out[0].bias)


class _Transformer:
    """A Transformer2DModel: 1 x 1 convolutions as products around its blocks."""

    def __init__(self, module: Any, blocks: Sequence[_Block], kernels: Kernels) -> None:
        self._kernels, self._norm, self._blocks = kernels, module.norm, blocks
        self._into = (module.proj_in.weight.data.flatten(1), module.proj_in.bias)
        self._out = (module.proj_out.weight.data.flatten(1), module.proj_out.bias)

    def __call__(self, x: Tensor, text: Tensor) -> Tensor:
        h = pixels(self._kernels.group_norm(x, self._norm, silu=False))
        tokens = product(h.flatten(1, 2), *self._into)
        for block in self._blocks:
            tokens = block(tokens, text)
        return picture(product(tokens, *self._out).view(h.shape)).add_(x)


@dataclass(frozen=True, eq=False)
class _Level:
    """A block of the U-Net: residual blocks, each with its transformer, then a change of size."""

    resnets: list[tuple[int, Resnet]]
    transformers: list[_Transformer | None]
    sampling: Downsampling | Upsampling | None


class FastUNet:
    """Predicts noise as the module that it was made of; `unsupported_reason` says of which it can.

    It is made after everything that changes weights. Fused projections take the place of the
    module's own; so do the concatenations of all time projections and of all text projections, of
    which the modules' weights become views. There twice: the sums of two biases a block, and the
    weights of folded up-sampling (`Upsampling`). Not safe for gradients.
    """

    def __init__(self, unet: Any, kernels: Kernels, orders: Mapping[int, Order]) -> None:
        """``orders`` are of attention's kernels by head size. Raises ValueError where it cannot."""
        if reason := unsupported_reason(unet):
            raise ValueError(reason)
        fuse_projections(unet)
        self._kernels, self._orders = kernels, orders
        self._dtype = unet.dtype
        self._times = _TimeTable(unet)
        self._conv_in, self._conv_out = Convolution(unet.conv_in), Convolution(unet.conv_out)
        self._norm_out = unet.conv_norm_out
        self._resnets: list[Any] = []
        self._cross: list[Any] = []
        self._down = [self._level(block, block.downsamplers) for block in unet.down_blocks]
        self._middle = self._level(unet.mid_block, None)
        self._up = [self._level(block, block.upsamplers) for block in unet.up_blocks]
        with torch.no_grad():
            self._time_weight, time_bias = _concatenated([m.time_emb_proj for m in self._resnets])
            self._time_bias = time_bias + torch.cat([m.conv1.bias for m in self._resnets])
            self._text_weight, _ = _concatenated([m.to_kv for m in self._cross])
        self._time_sizes = [m.time_emb_proj.out_features for m in self._resnets]

    def _level(self, block: Any, samplers: Any) -> _Level:
        resnets = []
        for module in block.resnets:
            resnets.append((len(self._resnets), Resnet(module, self._kernels)))
            self._resnets.append(module)
        transformers: list[_Transformer | None] = [
            self._transformer(module) for module in getattr(block, "attentions", [])
        ]
        transformers += [None] * (len(resnets) - len(transformers))
        sampling: Downsampling | Upsampling | None = None
        if samplers:
            kind = Upsampling if type(samplers[0]).__name__ == "Upsample2D" else Downsampling
            sampling = kind(samplers[0], self._kernels)
        return _Level(resnets, transformers, sampling)

    def _transformer(self, module: Any) -> _Transformer:
        blocks = []
        for block in module.transformer_blocks:
            first = sum(int(m.to_kv.out_features) for m in self._cross)
            place = _TextPlace(first, int(block.attn2.to_kv.out_features) // 2)
            blocks.append(_Block(block, place, self._kernels, self._orders))
            self._cross.append(block.attn2)
        return _Transformer(module, blocks, self._kernels)

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, *, circular: bool = False
    ) -> Tensor:
        """Predict from (R, 4, h, w) latents, (R,) timesteps and (R, T, D) text: (R, 4, h, w).

        ``circular`` pads every convolution with the opposite edge.
        """
        embedding = F.silu(self._times(timestep, self._dtype))
        projected = product(embedding, self._time_weight, self._time_bias)
        times = torch.split(projected, self._time_sizes, 1)
        keys = product(text, self._text_weight)
        x = latents.contiguous(memory_format=torch.channels_last)
        x = self._kernels.bias_residual(self._conv_in(x, circular), self._conv_in.bias)
        skips = [x]
        for level in self._down:
            for (index, resnet), transformer in zip(level.resnets, level.transformers, strict=True):
                x = resnet(x, circular, times[index])
                x = x if transformer is None else transformer(x, keys)
                skips.append(x)
            if isinstance(level.sampling, Downsampling):
                x = level.sampling(x, circular)
                skips.append(x)
        x = self._through_middle(x, times, keys, circular)
        for level in self._up:
            for (index, resnet), transformer in zip(level.resnets, level.transformers, strict=True):
                x = resnet(x, circular, times[index], skips.pop())
                x = x if transformer is None else transformer(x, keys)
            if isinstance(level.sampling, Upsampling):
                x = level.sampling(x, circular, (skips[-1].shape[2], skips[-1].shape[3]))
        return head(x, self._norm_out, self._conv_out, self._kernels, circular)

    def _through_middle(
        self, x: Tensor, times: Sequence[Tensor], keys: Tensor, circular: bool
    ) -> Tensor:
        """The first residual block, then a transformer before each of the others."""
        middle = self._middle
        first, *others = middle.resnets
        x = first[1](x, circular, times[first[0]])
        for (index, resnet), transformer in zip(others, middle.transformers, strict=False):
            assert transformer is not None
            x = resnet(transformer(x, keys), circular, times[index])
        return x


class _TimeTable:
    """Sinusoids of a timestep and the two layers after them; the frequencies are made once."""

    def __init__(self, unet: Any) -> None:
        sinusoids, self._layers = unet.time_proj, unet.time_embedding
        half = sinusoids.num_channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32)
        exponent = exponent / (half - sinusoids.downscale_freq_shift)
        self._frequencies = torch.exp(exponent).to(unet.device)
        self._cosine_first = sinusoids.flip_sin_to_cos

    def __call__(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """(R,) to (R, time channels)."""
        angles = timestep.float()[:, None] * self._frequencies
        waves = [angles.cos(), angles.sin()]
        made = torch.cat(waves if self._cosine_first else waves[::-1], dim=-1).to(dtype)
        first, second = self._layers.linear_1, self._layers.linear_2
        return product(F.silu(product(made, first.weight, first.bias)), second.weight, second.bias)


def _concatenated(layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """One weight and bias for several layers of one input, whose own weights become its views."""
    weight = torch.cat([layer.weight.data for layer in layers])
    sizes = [layer.out_features for layer in layers]
    for layer, own in zip(layers, torch.split(weight, sizes), strict=True):
        layer.weight.data = own
    biases = [
        weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.data
        for layer in layers
    ]
    return weight, torch.cat(biases)
