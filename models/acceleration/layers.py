"""The layers that the fast forwards of U-Net and VAE are made of, over diffusers' parameters.

Nothing here is a module and nothing of diffusers is changed but where a weight lies: what is fused
or in another layout takes the place of the parameter's own storage, so that no weight is there
twice (the exceptions say so). Pictures are (N, C, H, W) in channels_last throughout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from models.acceleration.torch_kernels import Kernels

Tensor = torch.Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply (..., D) by a weight (E, D): (..., E).

    Every matrix product of the fast forwards goes through here: the one place for what adds to a
    product by row.
    """
    return F.linear(x, weight, bias)


def pixels(x: Tensor) -> Tensor:
    """Return (N, C, H, W) in channels_last as (N, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def picture(x: Tensor) -> Tensor:
    """Return (N, H, W, C) as (N, C, H, W) in channels_last, a view."""
    return x.permute(0, 3, 1, 2)


def split_last(x: Tensor, *parts: int) -> Tensor:
    """Return (..., C) as (..., *parts, rest), a view."""
    return x.view(*x.shape[:-1], *parts, -1)


def lay_out(parameter: Tensor) -> Tensor:
    """Put a convolution's weight into channels_last, in its own place, and return it."""
    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return parameter.data


def wrapped(x: Tensor) -> Tensor:
    """Pad pictures by one pixel of the opposite edge."""
    x = torch.cat([x[..., -1:], x, x[..., :1]], dim=-1)
    x = torch.cat([x[..., -1:, :], x, x[..., :1, :]], dim=-2)
    return x.contiguous(memory_format=torch.channels_last)


class Convolution:
    """A 3 x 3 convolution without its bias, which a later kernel adds."""

    def __init__(self, module: torch.nn.Conv2d) -> None:
        self._weight = lay_out(module.weight)
        self._stride = module.stride
        self._padding = int(module.padding[0])
        bias = module.bias
        self.bias: Tensor = (
            self._weight.new_zeros(module.out_channels) if bias is None else bias.data
        )

    def __call__(self, x: Tensor, circular: bool) -> Tensor:
        padding = self._padding
        if circular and padding:
            x, padding = wrapped(x), 0
        return F.conv2d(x, self._weight, None, self._stride, padding)


class Resnet:
    """A ResnetBlock2D. ``added`` (N, C) is its part of the time and its first bias, if it has a
    time; ``skip`` the skip connection that follows the channels of ``x``."""

    def __init__(self, module: Any, kernels: Kernels) -> None:
        self._kernels = kernels
        self._norm1, self._norm2 = module.norm1, module.norm2
        self._conv1, self._conv2 = Convolution(module.conv1), Convolution(module.conv2)
        shortcut = module.conv_shortcut
        self._shortcut = None if shortcut is None else shortcut.weight.data.flatten(1)
        self._shortcut_bias = None if shortcut is None else shortcut.bias.data

    def __call__(
        self, x: Tensor, circular: bool, added: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        kernels = self._kernels
        if skip is not None and (
            self._shortcut is None or not kernels.joins(x.shape[1], skip.shape[1])
        ):
            x, skip = torch.cat([x, skip], dim=1), None
        h = kernels.group_norm(x, self._norm1, silu=True, skip=skip)
        h = self._conv1(h, circular)
        add = self._conv1.bias if added is None else added
        h = kernels.group_norm(h, self._norm2, silu=True, add=add)
        h = self._conv2(h, circular)
        return kernels.bias_residual(h, self._conv2.bias, self._past(x, skip))

    def _past(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Return what is added to the block's result: its input, with as many channels as that."""
        weight = self._shortcut
        if weight is None:
            return x
        if skip is None:
            return picture(product(pixels(x), weight, self._shortcut_bias))
        first = x.shape[1]
        made = product(pixels(x), weight[:, :first], self._shortcut_bias)
        return picture(made.add_(product(pixels(skip), weight[:, first:])))


class Upsampling:
    """An Upsample2D: nearest neighbour, then a convolution.

    Where the kernels fold it, each of the four phases of the larger picture is a 2 x 2 convolution
    of the smaller one, whose weights are sums of the nine: 4 of 9 products, and no larger input.
    The phases' weights are beside the module's own, 16/9 of their size.
    """

    def __init__(self, module: Any, kernels: Kernels) -> None:
        self._kernels = kernels
        self._conv = Convolution(module.conv)
        self._phases = phases_of(module.conv.weight.data) if kernels.folds_upsampling else None

    def __call__(self, x: Tensor, circular: bool, size: tuple[int, int] | None = None) -> Tensor:
        """``size`` (H, W) is of the result; None: twice the input's."""
        twice = (2 * x.shape[2], 2 * x.shape[3])
        if self._phases is not None and size in (None, twice):
            x, padding = (wrapped(x), 0) if circular else (x, 1)
            return self._kernels.interleave(
                F.conv2d(x, self._phases, None, 1, padding), self._conv.bias
            )
        x = F.interpolate(x, size=size or twice, mode="nearest")
        return self._kernels.bias_residual(self._conv(x, circular), self._conv.bias)


class Downsampling:
    """A Downsample2D: a convolution of stride 2. The VAE's pads right and below, with zeros."""

    def __init__(self, module: Any, kernels: Kernels) -> None:
        self._kernels = kernels
        self._conv = Convolution(module.conv)
        self._pads = module.padding == 0

    def __call__(self, x: Tensor, circular: bool) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1)) if self._pads else x
        return self._kernels.bias_residual(self._conv(x, circular), self._conv.bias)


def phases_of(weight: Tensor) -> Tensor:
    """Return the 2 x 2 weights, (4 C, D, 2, 2), of a 3 x 3 one (C, D, 3, 3) after up-sampling.

    A row of an even phase sees the small picture's rows (i - 1, i), of which the second was two of
    the large one's; an odd phase sees (i, i + 1), the other way round.
    """
    exact = weight.float()
    rows = [_pairs(exact, 2, odd) for odd in (False, True)]
    phases = [_pairs(row, 3, odd) for row in rows for odd in (False, True)]
    made = torch.cat(phases).to(weight.dtype)
    return made.contiguous(memory_format=torch.channels_last)


def _pairs(weight: Tensor, dim: int, odd: bool) -> Tensor:
    first, second, third = torch.split(weight, 1, dim)
    pair = [first + second, third] if odd else [first, second + third]
    return torch.cat(pair, dim)


def head(
    x: Tensor, norm: torch.nn.GroupNorm, conv: Convolution, kernels: Kernels, circular: bool
) -> Tensor:
    """Norm, SiLU and the last convolution, whose few channels take their bias in torch."""
    h = conv(kernels.group_norm(x, norm, silu=True), circular)
    return h.add_(conv.bias[:, None, None])
