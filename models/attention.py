"""Attention as the fast path runs it: fused projections, the kernel that is fastest for its heads.

Stable Diffusion 1.x has heads of 40, 80 and 160 channels, which kernels pad to different sizes:
which is fastest is not the same for all three, nor on every card, so it is measured.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from models.device import synchronize

if TYPE_CHECKING:
    from models.bundle import ModelBundle

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "memory efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Kernels of scaled dot product attention by name, in torch's order of preference."""

_RUNS = 5


def fuse_projections(unet: Any) -> None:
    """One matrix product for query, key and value, and one for key and value of the text.

    The separate weights go: they would take their memory twice.
    """
    for module in unet.modules():
        if not isinstance(module, Attention) or module.fused_projections:
            continue
        with torch.no_grad():
            module.fuse_projections(fuse=True)
        fused = module.to_kv if module.is_cross_attention else module.to_qkv
        fused.requires_grad_(False)
        # The name stays, without its weights: diffusers looks whether it is there.
        module.to_k = module.to_v = None
        if not module.is_cross_attention:
            module.to_q = None
        module.set_processor(FusedAttnProcessor2_0())


class KernelProcessor:
    """Fused attention through one chosen kernel; where that cannot run, through what can."""

    def __init__(self, kernel: SDPBackend) -> None:
        self.kernel = kernel
        others = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
        self._order = [kernel, *(other for other in others if other is not kernel)]
        self._fused = FusedAttnProcessor2_0()

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        with sdpa_kernel(self._order, set_priority=True):
            states: torch.Tensor = self._fused(*args, **options)
        return states


def choose_kernels(unet: Any, kernels: Mapping[int, SDPBackend]) -> None:
    """Give each attention of a fused ``unet`` the kernel for its head size, where there is one."""
    for module in unet.modules():
        if isinstance(module, Attention):
            width = (module.to_kv if module.is_cross_attention else module.to_qkv).out_features
            head = width // (2 if module.is_cross_attention else 3) // module.heads
            if head in kernels:
                module.set_processor(KernelProcessor(kernels[head]))


def fastest_kernels(
    shapes: Mapping[int, tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> dict[int, SDPBackend]:
    """The kernel with the shortest self-attention by head size.

    ``shapes`` has (heads, tokens) by head size: those of a level of the U-Net.
    """
    chosen = {}
    for size, (heads, tokens) in shapes.items():
        timed = {
            kernel: seconds
            for kernel in KERNELS.values()
            if (seconds := _seconds(kernel, size, heads, tokens, device, dtype)) is not None
        }
        if timed:
            chosen[size] = min(timed, key=lambda kernel: timed[kernel])
    return chosen


def attention_shapes(bundle: ModelBundle, height: int, width: int) -> dict[int, tuple[int, int]]:
    """(heads, tokens) of self-attention by head size, for latents of ``height`` x ``width``.

    Of levels with heads of one size the largest counts, where most of the time goes.
    """
    widths = bundle.unet.config.block_out_channels
    shapes: dict[int, tuple[int, int]] = {}
    for level, (channels, size) in enumerate(zip(widths, bundle.head_sizes, strict=True)):
        tokens = -(-height // 2**level) * -(-width // 2**level)
        shapes.setdefault(size, (channels // size, tokens))
    return shapes


def attention_backends(head_sizes: Sequence[int], device: torch.device, dtype: torch.dtype) -> str:
    """Which kernels of scaled dot product attention run there for these head sizes, in words.

    They are tried, in torch's order of preference: what is compiled in need not run on a card.
    """

    def runs(kernel: SDPBackend, size: int) -> bool:
        return _seconds(kernel, size, 1, 64, device, dtype) is not None

    by_size = {
        size: ", ".join(name for name, kernel in KERNELS.items() if runs(kernel, size))
        for size in sorted(set(head_sizes))
    }
    if len(set(by_size.values())) == 1:
        return next(iter(by_size.values()))
    return "; ".join(f"{size}: {names}" for size, names in by_size.items())


def _seconds(
    kernel: SDPBackend,
    size: int,
    heads: int,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float | None:
    """The best of a few runs at two rows; None where the kernel does not run there."""
    query = torch.randn(2, heads, tokens, size, device=device, dtype=dtype)
    best = None
    try:
        with warnings.catch_warnings(), sdpa_kernel(kernel), torch.inference_mode():
            warnings.simplefilter("ignore")  # torch warns of each reason why a kernel does not run
            for _ in range(_RUNS):
                synchronize(device)
                started = time.perf_counter()
                scaled_dot_product_attention(query, query, query)
                synchronize(device)
                seconds = time.perf_counter() - started
                best = seconds if best is None else min(best, seconds)
    except RuntimeError:
        return None
    return best
