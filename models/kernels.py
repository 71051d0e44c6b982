"""Triton kernels for what is left between the products and the convolutions of a forward.

Pictures are (N, C, H, W) in channels_last, so a kernel sees (N, H * W, C) in memory; tokens are
(N, S, C). Sums are in float32 whatever the dtype. `TorchKernels` (`models/torch_kernels.py`) says
in torch what each of these computes.

Statistics of a group norm never cancel: a program sums deviations from the first pixel that it
reads and hands on a mean and a sum of squared deviations, which are combined by Chan's formula
(`fast_unet.py`, the experiment that these kernels come from, subtracted squares of sums, which
leaves nothing of a spread of one around a mean of thousands).

Numbers that a new picture size changes are not specialised: no size compiles anything anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

Tensor = torch.Tensor

_FUSED = {"enable_fp_fusion": True}
"""Multiply-adds in one instruction, as Triton has done so far; 3.10 stops doing so unasked."""

_TILE = 2048
"""Elements of a program that goes over memory once."""


@triton.jit(do_not_specialize=["hw", "per", "splits"])
def _gn_partial(
    x, skip, part, hw, c1, c2, splits, per, JOINED: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr
):  # type: ignore[no-untyped-def]
    """Mean and squared deviations of BC channels over ``per`` pixels: part (N, splits, 2, C)."""
    n, s, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = block * BC
    source, width, total = x, c1, c1
    if JOINED:
        total = c1 + c2
        late = first >= c1
        source = tl.where(late, skip, x)
        width = tl.where(late, c2, c1)
        first = tl.where(late, first - c1, first)
    c = tl.multiple_of(first, BC) + tl.arange(0, BC)
    cm = c < width
    base = source + n.to(tl.int64) * hw * width
    lo = s * per
    hi = tl.minimum(lo + per, hw)
    pivot = tl.load(base + lo * width + c, mask=cm, other=0.0).to(tl.float32)
    sums = tl.zeros((BH, BC), tl.float32)
    squares = tl.zeros((BH, BC), tl.float32)
    for r in range(lo, hi, BH):
        h = r + tl.arange(0, BH)
        m = (h < hi)[:, None] & cm[None, :]
        v = tl.load(base + h[:, None] * width + c[None, :], mask=m, other=0.0).to(tl.float32)
        v = tl.where(m, v - pivot[None, :], 0.0)
        sums += v
        squares += v * v
    shift = tl.sum(sums, 0) / (hi - lo)
    out = part + (n * splits + s) * 2 * total + block * BC + tl.arange(0, BC)
    tl.store(out, pivot + shift, mask=cm)
    tl.store(out + total, tl.sum(squares, 0) - shift * shift * (hi - lo), mask=cm)


@triton.jit(do_not_specialize=["hw", "per", "splits", "row"], do_not_specialize_on_alignment=["add"])
def _gn_fold(
    part,
    add,
    gamma,
    beta,
    ab,
    hw,
    C,
    splits,
    per,
    row,
    eps,
    CPG: tl.constexpr,
    ADDS: tl.constexpr,
    BS: tl.constexpr,
    BG: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """A group's parts to one scale and shift a channel: ab (N, 2, C); ``add`` joins every pixel."""
    n, g = tl.program_id(0), tl.program_id(1)
    k = tl.arange(0, BG)
    c = g * CPG + k
    cm = k < CPG
    extra = tl.zeros((BG,), tl.float32)
    if ADDS:
        extra = tl.load(add + n * row + c, mask=cm, other=0.0).to(tl.float32)
    weighted = tl.zeros((BS, BG), tl.float32)
    for s0 in range(0, splits, BS):
        s = s0 + tl.arange(0, BS)
        m = (s < splits)[:, None] & cm[None, :]
        o = part + (n * splits + s[:, None]) * 2 * C + c[None, :]
        count = tl.minimum(hw - s * per, per).to(tl.float32)
        weighted += tl.where(m, tl.load(o, mask=m, other=0.0) + extra[None, :], 0.0) * (
            count / hw
        )[:, None]
    mean = tl.sum(tl.sum(weighted, 0), 0) / CPG
    deviations = tl.zeros((BS, BG), tl.float32)
    for s0 in range(0, splits, BS):
        s = s0 + tl.arange(0, BS)
        m = (s < splits)[:, None] & cm[None, :]
        o = part + (n * splits + s[:, None]) * 2 * C + c[None, :]
        count = tl.minimum(hw - s * per, per).to(tl.float32)
        d = tl.where(m, tl.load(o, mask=m, other=0.0) + extra[None, :] - mean, 0.0)
        deviations += d * d * count[:, None] + tl.load(o + C, mask=m, other=0.0)
    variance = tl.sum(tl.sum(deviations, 0), 0) / hw / CPG
    a = tl.load(gamma + c, mask=cm, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    b = tl.load(beta + c, mask=cm, other=0.0).to(tl.float32) + (extra - mean) * a
    tl.store(ab + n * 2 * C + c, a, mask=cm)
    tl.store(ab + (n * 2 + 1) * C + c, b, mask=cm)


@triton.jit(do_not_specialize=["hw"])
def _gn_apply(x, ab, y, hw, C, SILU: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scale and shift, then SiLU: one picture's elements in a row."""
    n = tl.program_id(1)
    i = tl.program_id(0) * B + tl.arange(0, B)
    m = i < hw * C
    c = i % C
    offset = n.to(tl.int64) * hw * C
    v = tl.load(x + offset + i, mask=m, other=0.0).to(tl.float32)
    a = tl.load(ab + n * 2 * C + c, mask=m, other=0.0)
    b = tl.load(ab + (n * 2 + 1) * C + c, mask=m, other=0.0)
    v = v * a + b
    if SILU:
        v = v / (1.0 + tl.exp(-v))
    tl.store(y + offset + i, v.to(y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["hw"])
def _gn_apply_tile(
    x,
    skip,
    ab,
    y,
    hw,
    c1,
    c2,
    JOINED: tl.constexpr,
    SILU: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """As `_gn_apply` by tiles; ``y`` has the channels of ``x``, then those of ``skip``."""
    block, n = tl.program_id(1), tl.program_id(2)
    first = block * BC
    source, width, total = x, c1, c1
    if JOINED:
        total = c1 + c2
        late = first >= c1
        source = tl.where(late, skip, x)
        width = tl.where(late, c2, c1)
        first = tl.where(late, first - c1, first)
    c = tl.multiple_of(first, BC) + tl.arange(0, BC)
    h = tl.program_id(0) * BH + tl.arange(0, BH)
    cm = c < width
    m = (h < hw)[:, None] & cm[None, :]
    to = block * BC + tl.arange(0, BC)
    a = tl.load(ab + n * 2 * total + to, mask=cm, other=0.0)
    b = tl.load(ab + (n * 2 + 1) * total + to, mask=cm, other=0.0)
    at = source + n.to(tl.int64) * hw * width + h[:, None] * width + c[None, :]
    v = tl.load(at, mask=m, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
    if SILU:
        v = v / (1.0 + tl.exp(-v))
    out = y + n.to(tl.int64) * hw * total + h[:, None] * total + to[None, :]
    tl.store(out, v.to(y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["hw", "row"], do_not_specialize_on_alignment=["add"])
def _gn_group(
    x,
    add,
    gamma,
    beta,
    y,
    hw,
    C,
    row,
    eps,
    CPG: tl.constexpr,
    ADDS: tl.constexpr,
    SILU: tl.constexpr,
    BH: tl.constexpr,
    BG: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """A whole group norm of small pictures: a program a group, which it reads again from cache."""
    n, g = tl.program_id(0), tl.program_id(1)
    k = tl.arange(0, BG)
    c = g * CPG + k
    cm = k < CPG
    extra = tl.zeros((BG,), tl.float32)
    if ADDS:
        extra = tl.load(add + n * row + c, mask=cm, other=0.0).to(tl.float32)
    base = n.to(tl.int64) * hw * C
    pivot = tl.load(x + base + c, mask=cm, other=0.0).to(tl.float32)
    sums = tl.zeros((BH, BG), tl.float32)
    squares = tl.zeros((BH, BG), tl.float32)
    for r in range(0, hw, BH):
        h = r + tl.arange(0, BH)
        m = (h < hw)[:, None] & cm[None, :]
        v = tl.load(x + base + h[:, None] * C + c[None, :], mask=m, other=0.0).to(tl.float32)
        v = tl.where(m, v - pivot[None, :], 0.0)
        sums += v
        squares += v * v
    shift = tl.sum(sums, 0) / hw
    each = tl.where(cm, pivot + shift + extra, 0.0)
    mean = tl.sum(each, 0) / CPG
    d = tl.where(cm, each - mean, 0.0)
    variance = tl.sum((tl.sum(squares, 0) / hw - shift * shift) + d * d, 0) / CPG
    a = tl.load(gamma + c, mask=cm, other=0.0).to(tl.float32) / tl.sqrt(
        tl.maximum(variance, 0.0) + eps
    )
    b = tl.load(beta + c, mask=cm, other=0.0).to(tl.float32) + (extra - mean) * a
    for r in range(0, hw, BH):
        h = r + tl.arange(0, BH)
        m = (h < hw)[:, None] & cm[None, :]
        at = base + h[:, None] * C + c[None, :]
        v = tl.load(x + at, mask=m, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
        if SILU:
            v = v / (1.0 + tl.exp(-v))
        tl.store(y + at, v.to(y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["hw"])
def _bias_residual(x, bias, res, y, hw, C, ADDS: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * B + tl.arange(0, B)
    m = i < hw * C
    offset = tl.program_id(1).to(tl.int64) * hw * C
    v = tl.load(x + offset + i, mask=m, other=0.0).to(tl.float32)
    v += tl.load(bias + i % C, mask=m, other=0.0).to(tl.float32)
    if ADDS:
        v += tl.load(res + offset + i, mask=m, other=0.0).to(tl.float32)
    tl.store(y + offset + i, v.to(y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows"])
def _geglu(x, y, rows, D, BR: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    i = tl.program_id(1) * B + tl.arange(0, B)
    m = (r < rows)[:, None] & (i < D)[None, :]
    at = x + r[:, None] * 2 * D + i[None, :]
    v = tl.load(at, mask=m, other=0.0).to(tl.float32)
    gate = tl.load(at + D, mask=m, other=0.0).to(tl.float32)
    gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + r[:, None] * D + i[None, :], (v * gate).to(y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows"])
def _layer_norm(
    x, res, gamma, beta, s, y, rows, C, eps, ADDS: tl.constexpr, BR: tl.constexpr, B: tl.constexpr
):  # type: ignore[no-untyped-def]
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    i = tl.arange(0, B)
    im = i < C
    m = (r < rows)[:, None] & im[None, :]
    at = r[:, None] * C + i[None, :]
    v = tl.load(x + at, mask=m, other=0.0).to(tl.float32)
    if ADDS:
        v += tl.load(res + at, mask=m, other=0.0).to(tl.float32)
        tl.store(s + at, v.to(s.dtype.element_ty), mask=m)
    mean = tl.sum(v, 1) / C
    d = tl.where(m, v - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(d * d, 1) / C + eps)
    a = tl.load(gamma + i, mask=im, other=0.0).to(tl.float32)
    b = tl.load(beta + i, mask=im, other=0.0).to(tl.float32)
    out = d * scale[:, None] * a[None, :] + b[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["h", "w"])
def _interleave(x, bias, y, h, w, C, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row of the upsampled picture, from phases (N, h + 1, w + 1, 2, 2, C)."""
    row, n = tl.program_id(1), tl.program_id(2)
    i = tl.program_id(0) * B + tl.arange(0, B)
    m = i < 2 * w * C
    column, c = i // C, i % C
    up, left = row % 2, column % 2
    pixel = (n.to(tl.int64) * (h + 1) + row // 2 + up) * (w + 1) + column // 2 + left
    v = tl.load(x + (pixel * 4 + up * 2 + left) * C + c, mask=m, other=0.0).to(tl.float32)
    v += tl.load(bias + c, mask=m, other=0.0).to(tl.float32)
    out = y + (n.to(tl.int64) * 2 * h + row) * 2 * w * C + i
    tl.store(out, v.to(y.dtype.element_ty), mask=m)


@dataclass(frozen=True)
class Geometry:
    """How work is cut into programs.

    A group norm's statistics have at least ``pixels`` pixels a program and about ``waves``
    programs a multiprocessor, at most ``most_splits`` a channel block (0: any number). ``tiles``:
    its second half goes by tiles, a skip connection need not be concatenated, and pictures of at
    most ``whole_below`` pixels take one kernel. GEGLU has tiles of ``geglu``, (rows, columns);
    layer norm has ``norm_elements`` elements a program, at least a row. ``folds_upsampling``:
    see `models.forward_layers.Upsampling`.
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
"""What should be faster; right by Triton's interpreter, compiled for four cards, never timed."""

_MULTIPROCESSORS = 132


class TritonKernels:
    """Launches the kernels on the current device and stream."""

    def __init__(self, geometry: Geometry = PROVEN) -> None:
        self._geometry = geometry
        self.folds_upsampling = geometry.folds_upsampling

    def joins(self, channels: int, skipped: int) -> bool:
        """Whether `group_norm` takes a skip connection of ``skipped`` channels as it is."""
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
        y = _empty_picture(x, channels)
        cpg = channels // norm.num_groups
        if skip is None and hw <= geometry.whole_below:
            _gn_group[(n, norm.num_groups)](
                x, added.tensor, norm.weight, norm.bias, y, hw, channels, added.row, norm.eps,
                cpg, added.there, silu, 32, triton.next_power_of_2(cpg), num_warps=4, **_FUSED,
            )  # fmt: skip
            return y
        block = 64 if c1 % 64 == c2 % 64 == 0 else 32
        blocks = triton.cdiv(channels, block)
        per = self._pixels_per_program(hw, n * blocks)
        splits = triton.cdiv(hw, per)
        part = torch.empty(n, splits, 2, channels, device=x.device, dtype=torch.float32)
        ab = torch.empty(n, 2, channels, device=x.device, dtype=torch.float32)
        joined = skip is not None
        second = x if skip is None else skip
        _gn_partial[(n, splits, blocks)](
            x, second, part, hw, c1, c2, splits, per, joined, 32, block, num_warps=4, **_FUSED
        )
        _gn_fold[(n, norm.num_groups)](
            part, added.tensor, norm.weight, norm.bias, ab, hw, channels, splits, per, added.row,
            norm.eps, cpg, added.there, 32, triton.next_power_of_2(cpg), num_warps=4, **_FUSED,
        )  # fmt: skip
        if geometry.tiles:
            rows = _TILE // block
            _gn_apply_tile[(triton.cdiv(hw, rows), blocks, n)](
                x, second, ab, y, hw, c1, c2, joined, silu, rows, block, num_warps=4, **_FUSED
            )
        else:
            _gn_apply[(triton.cdiv(hw * channels, _TILE), n)](
                x, ab, y, hw, channels, silu, _TILE, num_warps=8, **_FUSED
            )
        return y

    def _pixels_per_program(self, hw: int, columns: int) -> int:
        geometry = self._geometry
        splits = max(1, _MULTIPROCESSORS * geometry.waves // columns)
        if geometry.most_splits:
            splits = max(1, min(splits + 1, hw // geometry.pixels, geometry.most_splits))
            return triton.cdiv(hw, splits)
        return max(geometry.pixels, triton.cdiv(hw, splits))

    def bias_residual(self, x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        """See `TorchKernels.bias_residual`."""
        x = _in_channels_last(x)
        n, channels, height, width = x.shape
        added = x if residual is None else _in_channels_last(residual)
        y = _empty_picture(x, channels)
        hw = height * width
        _bias_residual[(triton.cdiv(hw * channels, _TILE), n)](
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
        _geglu[(triton.cdiv(rows, high), triton.cdiv(width, wide))](
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
        block = triton.next_power_of_2(channels)
        high = max(1, self._geometry.norm_elements // block)
        _layer_norm[(triton.cdiv(rows, high),)](
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
        _interleave[(triton.cdiv(2 * width * channels, _TILE), 2 * height, n)](
            phases, bias, y, height, width, channels, _TILE, num_warps=8, **_FUSED
        )
        return y


class _Added:
    """What a group norm adds to every pixel first: (N, C), or (C,) for all alike, or nothing."""

    def __init__(self, add: Tensor | None, stand_in: Tensor) -> None:
        self.there = add is not None
        self.tensor = stand_in if add is None else add
        self.row = 0 if add is None or add.dim() == 1 else add.stride(0)
        if add is not None and add.stride(-1) != 1:
            raise ValueError("what a group norm adds has its channels side by side")


def _in_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty_picture(like: Tensor, channels: int) -> Tensor:
    n, _, height, width = like.shape
    return torch.empty(
        (n, channels, height, width),
        device=like.device,
        dtype=like.dtype,
        memory_format=torch.channels_last,
    )
