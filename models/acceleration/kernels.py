"""Triton kernels for what is left between the products and the convolutions of a forward.

Pictures are (N, C, H, W) in channels_last, so a kernel sees (N, H * W, C) in memory; tokens are
(N, S, C). Sums are in float32 whatever the dtype. `TorchKernels`
(`models/acceleration/torch_kernels.py`) says in torch what each of these computes.

Statistics of a group norm never cancel: a program sums deviations from the first pixel that it
reads and hands on a mean and a sum of squared deviations, which are combined by Chan's formula.
(The experiment that these kernels come from subtracted squares of sums, which leaves nothing of a
spread of one around a mean of thousands.) They are launched by
`models/acceleration/triton_kernels.py`.

Numbers that a new picture size changes are not specialised: no size compiles anything anew.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["hw", "per", "splits"])
def gn_partial(
    x, skip, part, hw, c1, c2, splits, per, JOINED: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr
):
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


@triton.jit(
    do_not_specialize=["hw", "per", "splits", "row"], do_not_specialize_on_alignment=["add"]
)
def gn_fold(
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
):
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
        weighted += (
            tl.where(m, tl.load(o, mask=m, other=0.0) + extra[None, :], 0.0) * (count / hw)[:, None]
        )
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
def gn_apply(x, ab, y, hw, C, SILU: tl.constexpr, B: tl.constexpr):
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
def gn_apply_tile(
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
):
    """As `gn_apply` by tiles; ``y`` has the channels of ``x``, then those of ``skip``."""
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
def gn_group(
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
):
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
def bias_residual(x, bias, res, y, hw, C, ADDS: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    m = i < hw * C
    offset = tl.program_id(1).to(tl.int64) * hw * C
    v = tl.load(x + offset + i, mask=m, other=0.0).to(tl.float32)
    v += tl.load(bias + i % C, mask=m, other=0.0).to(tl.float32)
    if ADDS:
        v += tl.load(res + offset + i, mask=m, other=0.0).to(tl.float32)
    tl.store(y + offset + i, v.to(y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows"])
def geglu(x, y, rows, D, BR: tl.constexpr, B: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    i = tl.program_id(1) * B + tl.arange(0, B)
    m = (r < rows)[:, None] & (i < D)[None, :]
    at = x + r[:, None] * 2 * D + i[None, :]
    v = tl.load(at, mask=m, other=0.0).to(tl.float32)
    gate = tl.load(at + D, mask=m, other=0.0).to(tl.float32)
    gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + r[:, None] * D + i[None, :], (v * gate).to(y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows"])
def layer_norm(
    x, res, gamma, beta, s, y, rows, C, eps, ADDS: tl.constexpr, BR: tl.constexpr, B: tl.constexpr
):
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
def interleave(x, bias, y, h, w, C, B: tl.constexpr):
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
