"""The autoencoder of Stable Diffusion 1.x as forwards of our own, over diffusers' weights.

An encode and a decode are lists of steps, so that a large picture can be put down between any two
(`pipelines/vae/passes.py`). An AutoencoderTiny has no norm and runs as its module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from models.acceleration.attention import attend
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
from models.bundle import VaeStep

Tensor = torch.Tensor

_MODULES = {
    "Attention", "AutoencoderKL", "Conv2d", "Decoder", "DownEncoderBlock2D", "Downsample2D",
    "Dropout", "Encoder", "GroupNorm", "Linear", "ModuleList", "ResnetBlock2D", "SiLU",
    "UNetMidBlock2D", "UpDecoderBlock2D", "Upsample2D",
}  # fmt: skip

_WIDE_HEAD = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""For one head of 512 channels, which no other kernel takes."""


def unsupported_reason(vae: Any) -> str | None:
    """Return why `FastVae` does not compute what this autoencoder does; None where it does."""
    if type(vae).__name__ != "AutoencoderKL":
        return f"it is an {type(vae).__name__}"
    if vae.config.act_fn != "silu":
        return f"its act_fn is {vae.config.act_fn!r}, not 'silu'"
    for module in vae.modules():
        if type(module).__name__ not in _MODULES:
            return f"it has a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"a {type(module).__name__} of it has a hook"
        if reason := _unusual(module):
            return reason
    kinds = {(p.dtype, p.device, type(p.data)) for p in vae.parameters()}
    if len(kinds) != 1:
        return "its weights are of more than one dtype, device or kind"
    return None


def _unusual(module: Any) -> str | None:
    kind = type(module).__name__
    if kind == "Attention":
        parts = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
        odd = any(getattr(module, part, None) is not None for part in parts)
        plain = module.residual_connection and module.rescale_output_factor == 1.0
        if odd or not plain or module.group_norm is None:
            return "its attention is of another kind"
    if kind == "Conv2d" and (
        module.padding_mode != "zeros"
        or module.dilation != (1, 1)
        or module.groups != 1
        or module.bias is None
    ):
        return "its convolutions pad, dilate or group in another way"
    if kind == "ResnetBlock2D" and (
        module.up
        or module.down
        or module.time_emb_proj is not None
        or module.time_embedding_norm not in ("default", "group")
        or module.output_scale_factor != 1.0
    ):
        return "its residual blocks are of another kind"
    if kind in ("Upsample2D", "Downsample2D") and (module.norm is not None or not module.use_conv):
        return "it samples up or down in another way"
    return None


class FastVae:
    """Encodes and decodes as the module that it was made of; `unsupported_reason` says of which.

    ``encoder`` takes (B, 3, H, W) pictures in -1..1 to (B, 2 * channels, h, w) moments, ``decoder``
    (B, channels, h, w) latents to pictures. There twice: query, key and value of the two attentions
    in one (3 MB in half precision), and the weights of folded up-sampling.
    """

    def __init__(self, vae: Any, kernels: Kernels) -> None:
        """Raises ValueError where it cannot."""
        if reason := unsupported_reason(vae):
            raise ValueError(reason)
        self._kernels = kernels
        self.encoder = self._encoder(vae)
        self.decoder = self._decoder(vae)

    def _encoder(self, vae: Any) -> list[VaeStep]:
        encoder = vae.encoder
        steps, scale = [self._first(encoder.conv_in, 1.0)], 1.0
        for block in encoder.down_blocks:
            steps += [_step(m, Resnet(m, self._kernels), scale) for m in block.resnets]
            for down in block.downsamplers or ():
                scale /= 4
                steps.append(_step(down, Downsampling(down, self._kernels), scale))
        steps += self._middle(encoder.mid_block, scale)
        steps.append(self._head(encoder, scale))
        if vae.quant_conv is not None:
            steps.append(_step(vae.quant_conv, _pointwise(vae.quant_conv), scale))
        return steps

    def _decoder(self, vae: Any) -> list[VaeStep]:
        decoder = vae.decoder
        scale = 0.25 ** (len(vae.config.block_out_channels) - 1)
        steps = []
        if vae.post_quant_conv is not None:
            steps.append(_step(vae.post_quant_conv, _pointwise(vae.post_quant_conv), scale))
        steps.append(self._first(decoder.conv_in, scale))
        steps += self._middle(decoder.mid_block, scale)
        for block in decoder.up_blocks:
            steps += [_step(m, Resnet(m, self._kernels), scale) for m in block.resnets]
            for up in block.upsamplers or ():
                scale *= 4
                steps.append(_step(up, Upsampling(up, self._kernels), scale))
        steps.append(self._head(decoder, scale))
        return steps

    def _first(self, module: Any, scale: float) -> VaeStep:
        conv, kernels = Convolution(module), self._kernels

        def run(x: Tensor, circular: bool) -> Tensor:
            x = x.contiguous(memory_format=torch.channels_last)
            return kernels.bias_residual(conv(x, circular), conv.bias)

        return _step(module, run, scale)

    def _middle(self, block: Any, scale: float) -> list[VaeStep]:
        first, *others = block.resnets
        steps = [_step(first, Resnet(first, self._kernels), scale)]
        for attention, resnet in zip(block.attentions, others, strict=True):
            if attention is not None:
                steps.append(_step(attention, _Attention(attention, self._kernels), scale))
            steps.append(_step(resnet, Resnet(resnet, self._kernels), scale))
        return steps

    def _head(self, half: Any, scale: float) -> VaeStep:
        conv, kernels, norm = Convolution(half.conv_out), self._kernels, half.conv_norm_out
        return _step(
            half.conv_out, lambda x, circular: head(x, norm, conv, kernels, circular), scale
        )


def _step(module: torch.nn.Module, run: Callable[[Tensor, bool], Tensor], scale: float) -> VaeStep:
    return VaeStep(run, sum(p.numel() for p in module.parameters()) * scale)


def _pointwise(module: Any) -> Callable[[Tensor, bool], Tensor]:
    weight, bias = module.weight.data.flatten(1), module.bias.data
    return lambda x, circular: picture(product(pixels(x), weight, bias))


class _Attention:
    """The middle block's attention over all pixels, with its norm before and its input added."""

    def __init__(self, module: Any, kernels: Kernels) -> None:
        self._kernels, self._norm, self._heads = kernels, module.group_norm, module.heads
        layers = [module.to_q, module.to_k, module.to_v]
        self._weight = torch.cat([layer.weight.data for layer in layers])
        self._bias = torch.cat([layer.bias.data for layer in layers])
        self._out = module.to_out[0]

    def __call__(self, x: Tensor, circular: bool) -> Tensor:
        h = pixels(self._kernels.group_norm(x, self._norm, silu=False))
        qkv = product(h.flatten(1, 2), self._weight, self._bias)
        parts = split_last(qkv, 3, self._heads).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        order = _WIDE_HEAD if x.is_cuda else None
        out = attend(query, key, value, order).transpose(1, 2).flatten(2)
        out = product(out, self._out.weight, self._out.bias)
        return picture(out.view(h.shape)).add_(x)
