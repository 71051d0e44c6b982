"""Attention as the fast path runs it: fused projections, the kernel that is fastest for its heads.

Stable Diffusion 1.x has heads of 40, 80 and 160 channels, which kernels pad to different sizes. On
Hopper the order is known (measured on an H200); on other cards it is measured at start, by the
device's own clock.
"""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from models.bundle import ModelBundle

logger = logging.getLogger(__name__)

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "memory efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Kernels of scaled dot product attention by name, in torch's order of preference."""

Order = tuple[SDPBackend, ...]
"""Kernels in the order in which they are tried: the first that takes a shape runs it."""

Views = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query, key and value."""

HOPPER = (9, 0)
HOPPER_ORDER: Order = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)

_RUNS = 20
_WARM_UP_RUNS = 3
_CLEARLY = 0.95
"""What a later kernel's time must be of an earlier one's to take its place: no tie is a race."""


def fuse_projections(unet: Any) -> None:
    """One matrix product for query, key and value, and one for key and value of the text.

    The separate weights go: they would take their memory twice.
    """
    # diffusers takes seconds to import.
    from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0

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


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, order: Order | None
) -> torch.Tensor:
    """Scaled dot product attention of (B, heads, S, D) by the kernels of ``order``, None: any."""
    if order is None:
        return scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(list(order), set_priority=True):
        return scaled_dot_product_attention(query, key, value)


class KernelProcessor:
    """Fused attention of a diffusers module through an order of kernels."""

    def __init__(self, order: Order) -> None:
        from diffusers.models.attention_processor import FusedAttnProcessor2_0

        self.order = order
        self._fused = FusedAttnProcessor2_0()

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        with sdpa_kernel(list(self.order), set_priority=True):
            states: torch.Tensor = self._fused(*args, **options)
        return states


def choose_kernels(unet: Any, orders: Mapping[int, Order]) -> None:
    """Give each attention of a fused ``unet`` the order for its head size, where there is one."""
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if isinstance(module, Attention):
            head = head_size(module)
            if head in orders:
                module.set_processor(KernelProcessor(orders[head]))


def head_size(module: Any) -> int:
    """Return the channels of one head of a fused attention."""
    fused = module.to_kv if module.is_cross_attention else module.to_qkv
    return int(fused.out_features) // (2 if module.is_cross_attention else 3) // int(module.heads)


def kernel_orders(
    shapes: Mapping[int, tuple[int, int]],
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    seconds: Callable[[SDPBackend, int, int, int, int], float | None] | None = None,
    *,
    fixed: bool = False,
) -> dict[int, Order]:
    """Return the order of kernels by head size, for ``shapes`` (heads, tokens) of ``rows`` rows.

    Known on Hopper, and ``fixed`` where pictures are to be the same after a restart: a stopwatch
    may choose otherwise then, and kernels differ in last bits. Else measured by ``seconds`` (of a
    kernel, size, heads, tokens, rows; None where it does not run), by default with the card's
    events. What does not run is left out. A size for which there is too little memory has no order,
    and torch chooses; there is none at all where there is no card.
    """
    if seconds is None and device.type != "cuda":
        return {}

    def order(size: int, heads: int, tokens: int) -> Order:
        if seconds is not None:
            return _fastest(lambda kernel: seconds(kernel, size, heads, tokens, rows))
        views = _views(size, heads, tokens, rows, device, dtype)
        running = _running(HOPPER_ORDER, views)
        known = fixed or torch.cuda.get_device_capability(device) == HOPPER
        if known or len(running) <= 2:  # math, which is never timed, is one
            return running
        return _fastest(lambda k: _event_seconds(k, views, device) if k in running else None)

    orders: dict[int, Order] = {}
    for size, (heads, tokens) in shapes.items():
        with suppress(torch.OutOfMemoryError):
            orders[size] = order(size, heads, tokens)
    if untried := [str(size) for size in shapes if size not in orders]:
        logger.warning(
            "torch chooses the kernels of attention of %s channels: there is too little memory to "
            "try them with %d rows",
            ", ".join(untried),
            rows,
        )
    return orders


def _fastest(seconds: Callable[[SDPBackend], float | None]) -> Order:
    """The fastest kernel, then those that take most shapes; of what runs, by ``seconds``."""
    math, efficient = SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION
    # math's scores are quadratic: it is the last resort, untimed.
    took = {k: s for k in KERNELS.values() if k is not math and (s := seconds(k)) is not None}
    first: list[SDPBackend] = []
    for kernel, time in took.items():
        if not first or time < took[first[0]] * _CLEARLY:
            first = [kernel]
    return tuple(dict.fromkeys([*first, *([efficient] if efficient in took else []), math]))


def orders_in_words(orders: Mapping[int, Order]) -> str:
    """Return the first choice by head size, for a log line."""
    names = {kernel: name for name, kernel in KERNELS.items()}
    return ", ".join(f"{size}: {names[order[0]]}" for size, order in orders.items())


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
    """Return which kernels of scaled dot product attention run there for these head sizes, in
    words.

    They are tried, in torch's order of preference: what is compiled in need not run on a card.
    """

    def runs(kernel: SDPBackend, size: int) -> bool:
        return _runs(kernel, _views(size, 1, 64, 2, device, dtype))

    by_size = {
        size: ", ".join(name for name, kernel in KERNELS.items() if runs(kernel, size))
        for size in sorted(set(head_sizes))
    }
    if len(set(by_size.values())) == 1:
        return next(iter(by_size.values()))
    return "; ".join(f"{size}: {names}" for size, names in by_size.items())


def _views(
    size: int, heads: int, tokens: int, rows: int, device: torch.device, dtype: torch.dtype
) -> Views:
    """Query, key and value as they come out of a fused projection: views with a stride of three."""
    fused = torch.randn(rows, tokens, 3, heads, size, device=device, dtype=dtype)
    query, key, value = (part.transpose(1, 2) for part in fused.unbind(2))
    return query, key, value


def _runs(kernel: SDPBackend, views: Views) -> bool:
    try:
        with warnings.catch_warnings(), sdpa_kernel(kernel), torch.inference_mode():
            warnings.simplefilter("ignore")  # torch warns of each reason why a kernel does not run
            attend(*views, None)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True


def _running(order: Order, views: Views) -> Order:
    """What runs of ``order``: a kernel that torch selects may fail all the same, as cuDNN's does
    without a plan. The last resort is not tried."""
    return tuple(k for k in order if k is SDPBackend.MATH or _runs(k, views))


def _event_seconds(kernel: SDPBackend, views: Views, device: torch.device) -> float:
    """The median of `_RUNS` runs, each between two events of the card."""
    times: list[float] = []
    with sdpa_kernel(kernel), torch.inference_mode():
        for _ in range(_WARM_UP_RUNS):
            attend(*views, None)
        for _ in range(_RUNS):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record(torch.cuda.current_stream(device))
            attend(*views, None)
            after.record(torch.cuda.current_stream(device))
            after.synchronize()
            times.append(before.elapsed_time(after) / 1e3)
    return statistics.median(times)
