"""Opt-in: linear layers of the U-Net's transformer blocks in int8 or fp8, by torchao.

Weights have one scale a row, made when the model is loaded; activations one a token, made as they
come. Both are then multiplied as they are stored, so that the product itself gets cheaper. Weights
alone would be read back to the model's dtype before every product, which saves memory and, at a
step's hundreds to thousands of tokens, no time. One scale for all activations of a product is no
option: requests share a step, and a request's picture, or its NaN, would reach its neighbours.

Query, key and value of self-attention are fused first, so that their input is rounded once.

Layers that are left as they are:

- convolutions and with them Stable Diffusion 1.x's ``proj_in`` and ``proj_out``: torchao's products
  are of matrices;
- the time embedding and its projections: a row a request, where finding scales costs more than the
  product, and every residual block hangs on them;
- cross attention's keys and values (``attn2.to_kv``): they read the 77 tokens of the text, not the
  picture's thousands, so there is next to nothing to gain;
- layers narrower than 64, whose scales cost more than the product saves, and sides that are no
  multiple of 16, which the fp8 product does not take (``torch._scaled_mm``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from models.acceleration.attention import fuse_projections
from models.errors import ModelLoadError
from models.spec import Quantization

SETTING = "IMG2IMG_QUANTIZE"
TORCHAO = "torchao==0.18.0"
"""The same as the extra ``quantize`` in pyproject.toml."""

MIN_FEATURES = 64
MULTIPLE = 16
FP8_CAPABILITY = (8, 9)
"""Ada, the first architecture whose tensor cores multiply fp8."""

_OF_TEXT = (".attn2.to_k", ".attn2.to_v", ".attn2.to_kv")


class QuantizedLinear(torch.nn.Linear):
    """A linear layer whose weight is a torchao tensor.

    Rounding has no gradient, and autograd would take what is left, the scales', for the whole (with
    it the gradient of the embedded U-Net points elsewhere: a cosine of 0.79). Where a gradient is
    wanted, which is CLIP guidance through the U-Net, the weight is read back instead.
    """

    @classmethod
    def of(cls, layer: torch.nn.Linear) -> QuantizedLinear:
        """``layer``, whose weight is a torchao tensor already; it shares its parameters."""
        made = cls(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
        )
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            weight: Any = self.weight
            return F.linear(input, weight.dequantize(), self.bias)
        return super().forward(input)


def check_quantization(kind: Quantization, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ModelLoadError where ``kind`` cannot be had: before gigabytes are read."""
    if kind == "off":
        return
    if kind == "fp8":
        _check_fp8(device, dtype)
    _config(kind, device)


def _check_fp8(device: torch.device, dtype: torch.dtype) -> None:
    needed = f"{FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]}"
    rule = f"{SETTING}=fp8 needs a CUDA device of compute capability {needed} or higher"
    if device.type != "cuda":
        raise ModelLoadError(f"{rule}, not {device}: use int8 or off")
    capability = _capability(device)
    if capability < FP8_CAPABILITY:
        got = f"{capability[0]}.{capability[1]}"
        raise ModelLoadError(f"{rule}; {device} has {got}: use int8 or off")
    if dtype is not torch.bfloat16:
        # torchao takes scales by row of bfloat16 weights alone.
        name = str(dtype).removeprefix("torch.")
        raise ModelLoadError(f"{SETTING}=fp8 needs IMG2IMG_DTYPE=bfloat16, not {name}")


def _capability(device: torch.device) -> tuple[int, int]:
    """Only on CUDA."""
    return torch.cuda.get_device_capability(device)


def _config(kind: Quantization, device: torch.device) -> Any:
    """torchao's configuration. Raises ModelLoadError where torchao is not installed."""
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            PerRow,
        )
        from torchao.utils import should_reduce_range
    except ImportError as error:
        raise ModelLoadError(f"{SETTING}={kind} needs torchao: pip install {TORCHAO}") from error
    # torchao would set options of torch.compile for the whole process, which are not its to choose.
    if kind == "fp8":
        return Float8DynamicActivationFloat8WeightConfig(
            granularity=PerRow(), set_inductor_config=False
        )
    return Int8DynamicActivationInt8WeightConfig(
        granularity=PerRow(),
        set_inductor_config=False,
        # A CPU without VNNI adds up pairs of products in 16 bits, which overflow at full range.
        reduce_range=should_reduce_range(device),
    )


def quantizable(unet: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The layers that are quantised, by name; see the module for those that are not."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and ".transformer_blocks." in f".{name}"
        and not name.endswith(_OF_TEXT)
        and min(layer.in_features, layer.out_features) >= MIN_FEATURES
        and layer.in_features % MULTIPLE == layer.out_features % MULTIPLE == 0
    }


def quantize_unet(unet: torch.nn.Module, kind: Quantization, device: torch.device) -> str:
    """Quantise in place, after everything that changes weights; says what was done.

    Raises ModelLoadError where torchao is not installed, or no layer is wide enough.
    """
    if kind == "off":
        return "off"
    config = _config(kind, device)
    from torchao.quantization import quantize_

    # Weights that torchao holds cannot be fused any more; a fused U-Net is left as it is.
    fuse_projections(unet)
    layers = quantizable(unet)
    if not layers:
        raise ModelLoadError(
            f"{SETTING}={kind}: no linear layer of this U-Net's transformer blocks is at least "
            f"{MIN_FEATURES} wide and a multiple of {MULTIPLE}"
        )
    total = sum(isinstance(m, torch.nn.Linear) for m in unet.modules())
    for name, layer in layers.items():
        quantize_(layer, config)
        unet.set_submodule(name, QuantizedLinear.of(layer))
    return f"{kind}, {len(layers)} of {total} linear layers"
