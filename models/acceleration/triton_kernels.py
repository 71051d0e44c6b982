"""Launches the Triton kernels: which ones, and how the work is cut into programs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.acceleration import kernels

Tensor = torch.Tensor

_FUSED = {"enable_fp_fusion": True}
"""Multiply-adds in one instruction, as Triton has done so far; 3.10 stops doing so unasked."""

_TILE = 2048
"""Elements of a program that goes over memory once."""


@dataclass(frozen=True)
class Geometry:
    """The cut of a kernel's work into programs.

    A group norm's statistics have at least ``pixels`` pixels a program and about ``waves``
    programs a multiprocessor, at most ``most_splits`` a channel block (0: any number). ``tiles``:
    its second half goes by tiles, a skip connection need not be concatenated, and pictures of at
    most ``whole_below`` pixels take one kernel. GEGLU has tiles of ``geglu``, (rows, columns);
    layer norm has ``norm_elements`` elements a program, at least a row. ``folds_upsampling``:
    see `models.acceleration.layers.Upsampling`.
    """

    pixels: int
    waves: int
    most_splits: int
    tiles: bool
    whole_below: int
    geglu: tuple[int, int]
    norm_elements: int
    folds_upsampling: bool


PROVEN = Geometry(64, 4, 32, False, 0, (1, 1024), 1, False)
"""How `fast_unet.py` cut it, which has run on a card: 6.0 ms for two rows, 32 for sixteen."""

NEXT = Geometry(128, 8, 0, True, 512, (8, 256), 2048, True)
"""What should be faster; right by Triton's interpreter, compiled for four cards, never timed.

Which of two kernels norms a level depends on its pixels: the first size on the other side of
``whole_below`` compiles the other one, once.
"""

_MULTIPROCESSORS = 132


class TritonKernels:
    """Launches the kernels on the current device and stream."""

    def __init__(self, geometry: Geometry = PROVEN) -> None:
        self._geometry = geometry
        self.folds_upsampling = geometry.folds_upsampling

    def joins(self, channels: int, skipped: int) -> bool:
        """Return whether `group_norm` takes a skip connection of ``skipped`` channels as it is."""
        return self._geometry.tiles and channels % 32 == skipped % 32 == 0

    def group_norm(
        self,
        x: Tensor,
        norm: torch.nn.GroupNorm,
        *,
        silu: bool,
        add: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """See `TorchKernels.group_norm`."""
        geometry = self._geometry
        x = _in_channels_last(x)
        n, c1, height, width = x.shape
        c2 = 0 if skip is None else skip.shape[1]
        hw, channels = height * width, c1 + c2
        if skip is not None:
            skip = _in_channels_last(skip)
        added = _Added(add, x)
        y = _empty_image(x, channels)
        cpg = channels // norm.num_groups
        if skip is None and hw <= geometry.whole_below:
            kernels.gn_group[(n, norm.num_groups)](
                x, added.tensor, norm.weight, norm.bias, y, hw, channels, added.row, norm.eps,
                cpg, added.there, silu, 32, _power_of_two(cpg), num_warps=4, **_FUSED,
            )  # fmt: skip
            return y
        block = 64 if c1 % 64 == c2 % 64 == 0 else 32
        blocks = _blocks(channels, block)
        per = self._pixels_per_program(hw, n * blocks)
        splits = _blocks(hw, per)
        part = torch.empty(n, splits, 2, channels, device=x.device, dtype=torch.float32)
        ab = torch.empty(n, 2, channels, device=x.device, dtype=torch.float32)
        joined = skip is not None
        second = x if skip is None else skip
        kernels.gn_partial[(n, splits, blocks)](
            x, second, part, hw, c1, c2, splits, per, joined, 32, block, num_warps=4, **_FUSED
        )
        kernels.gn_fold[(n, norm.num_groups)](
            part, added.tensor, norm.weight, norm.bias, ab, hw, channels, splits, per, added.row,
            norm.eps, cpg, added.there, 32, _power_of_two(cpg), num_warps=4, **_FUSED,
        )  # fmt: skip
        if geometry.tiles:
            rows = _TILE // block
            kernels.gn_apply_tile[(_blocks(hw, rows), blocks, n)](
                x, second, ab, y, hw, c1, c2, joined, silu, rows, block, num_warps=4, **_FUSED
            )
        else:
            kernels.gn_apply[(_blocks(hw * channels, _TILE), n)](
                x, ab, y, hw, channels, silu, _TILE, num_warps=8, **_FUSED
            )
        return y

    def _pixels_per_program(self, hw: int, columns: int) -> int:
        geometry = self._geometry
        splits = _MULTIPROCESSORS * geometry.waves // columns
        if geometry.most_splits:
            splits = max(1, min(splits + 1, hw // geometry.pixels, geometry.most_splits))
            return _blocks(hw, splits)
        return max(geometry.pixels, _blocks(hw, max(1, splits)))

    def bias_residual(self, x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        """See `TorchKernels.bias_residual`."""
        x = _in_channels_last(x)
        n, channels, height, width = x.shape
        added = x if residual is None else _in_channels_last(residual)
        y = _empty_image(x, channels)
        hw = height * width
        kernels.bias_residual[(_blocks(hw * channels, _TILE), n)](
            x, bias, added, y, hw, channels, residual is not None, _TILE, num_warps=8, **_FUSED
        )
        return y

    def geglu(self, x: Tensor) -> Tensor:
        """See `TorchKernels.geglu`."""
        x = x.contiguous()
        width = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], width)
        rows = y.numel() // width
        high, wide = self._geometry.geglu
        kernels.geglu[(_blocks(rows, high), _blocks(width, wide))](
            x, y, rows, width, high, wide, num_warps=4, **_FUSED
        )
        return y

    def layer_norm(
        self, x: Tensor, norm: torch.nn.LayerNorm, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `TorchKernels.layer_norm`."""
        x = x.contiguous()
        channels = x.shape[-1]
        added = x if residual is None else residual.contiguous()
        y = torch.empty_like(x)
        sums = x if residual is None else torch.empty_like(x)
        rows = x.numel() // channels
        block = _power_of_two(channels)
        high = max(1, self._geometry.norm_elements // block)
        kernels.layer_norm[(_blocks(rows, high),)](
            x, added, norm.weight, norm.bias, sums, y, rows, channels, norm.eps,
            residual is not None, high, block, num_warps=4, **_FUSED,
        )  # fmt: skip
        return sums, y

    def interleave(self, phases: Tensor, bias: Tensor) -> Tensor:
        """See `TorchKernels.interleave`."""
        phases = _in_channels_last(phases)
        n, channels, height, width = phases.shape
        channels, height, width = channels // 4, height - 1, width - 1
        y = torch.empty(
            (n, channels, 2 * height, 2 * width),
            device=phases.device,
            dtype=phases.dtype,
            memory_format=torch.channels_last,
        )
        kernels.interleave[(_blocks(2 * width * channels, _TILE), 2 * height, n)](
            phases, bias, y, height, width, channels, _TILE, num_warps=8, **_FUSED
        )
        return y


class _Added:
    """The sum that a group norm adds to every pixel first: (N, C), or (C,) for all alike, or
    nothing."""

    def __init__(self, add: Tensor | None, stand_in: Tensor) -> None:
        self.there = add is not None
        self.tensor = stand_in if add is None else add
        self.row = 0 if add is None or add.dim() == 1 else add.stride(0)
        if add is not None and add.stride(-1) != 1:
            raise ValueError("what a group norm adds has its channels side by side")


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


def _power_of_two(number: int) -> int:
    """The smallest that is not below ``number``."""
    return 1 << (number - 1).bit_length()


def _in_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty_image(like: Tensor, channels: int) -> Tensor:
    n, _, height, width = like.shape
    return torch.empty(
        (n, channels, height, width),
        device=like.device,
        dtype=like.dtype,
        memory_format=torch.channels_last,
    )
