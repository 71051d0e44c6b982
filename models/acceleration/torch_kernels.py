"""The kernels of a fast forward written in torch: their meaning, and their test.

Sums are in float32 whatever the dtype, as in `models/acceleration/kernels.py`. It runs on any
device, and no faster than diffusers' modules.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


class Kernels(Protocol):
    """The operations that a fast forward needs beside products, convolutions and attention."""

    folds_upsampling: bool
    """Return whether up-sampling is folded into its convolution, see
    `forward_layers.Upsampling`."""

    def joins(self, channels: int, skipped: int) -> bool: ...

    def group_norm(
        self,
        x: Tensor,
        norm: torch.nn.GroupNorm,
        *,
        silu: bool,
        add: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor: ...

    def bias_residual(self, x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor: ...

    def geglu(self, x: Tensor) -> Tensor: ...

    def layer_norm(
        self, x: Tensor, norm: torch.nn.LayerNorm, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def interleave(self, phases: Tensor, bias: Tensor) -> Tensor: ...


class TorchKernels:
    """The reference. ``folds`` goes the ways of the newer kernels: skips joined, weights folded."""

    def __init__(self, folds: bool = False) -> None:
        self.folds_upsampling = folds

    def joins(self, channels: int, skipped: int) -> bool:
        """Return whether `group_norm` takes a skip connection of ``skipped`` channels as it is."""
        return self.folds_upsampling

    def group_norm(
        self,
        x: Tensor,
        norm: torch.nn.GroupNorm,
        *,
        silu: bool,
        add: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Normalise (N, C, H, W) pictures by groups of channels, with SiLU after it if asked for.

        ``skip`` (N, C', H, W) follows the channels of ``x``; ``add``, (N, C) or (C,), is added to
        every pixel first.
        """
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        v = x.float()
        if add is not None:
            v = v + add.float()[..., :, None, None]
        v = F.group_norm(v, norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)
        v = F.silu(v) if silu else v
        return v.to(x.dtype, memory_format=torch.channels_last)

    def bias_residual(self, x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        """Add a bias (C,) and, if there is one, a residual to (N, C, H, W) pictures."""
        v = x.float() + bias.float()[:, None, None]
        v = v if residual is None else v + residual.float()
        return v.to(x.dtype, memory_format=torch.channels_last)

    def geglu(self, x: Tensor) -> Tensor:
        """Multiply the first half of (..., 2 D) channels by the GELU of the second: (..., D)."""
        v, gate = x.float().chunk(2, dim=-1)
        return (v * F.gelu(gate)).to(x.dtype)

    def layer_norm(
        self, x: Tensor, norm: torch.nn.LayerNorm, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (x + residual, its layer norm over the last dimension)."""
        v = x.float() if residual is None else x.float() + residual.float()
        weight, bias = norm.weight.float(), norm.bias.float()
        normed = F.layer_norm(v, norm.normalized_shape, weight, bias, norm.eps)
        return (x if residual is None else v.to(x.dtype)), normed.to(x.dtype)

    def interleave(self, phases: Tensor, bias: Tensor) -> Tensor:
        """Return pictures of twice the size from their four phases, with a bias (C,) added.

        ``phases`` (N, 4 C, h + 1, w + 1) hold, by phase (even and odd rows, then columns), the
        pixels of (N, C, 2 h, 2 w); odd phases begin one further.
        """
        n, channels, height, width = phases.shape
        channels, height, width = channels // 4, height - 1, width - 1
        split = phases.float().reshape(n, 2, 2, channels, height + 1, width + 1)
        made = phases.new_empty(n, channels, 2 * height, 2 * width, dtype=torch.float32)
        for up in (0, 1):
            for left in (0, 1):
                part = split[:, up, left, :, up : up + height, left : left + width]
                made[:, :, up::2, left::2] = part + bias.float()[:, None, None]
        return made.to(phases.dtype, memory_format=torch.channels_last)
