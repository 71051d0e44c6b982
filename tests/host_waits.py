"""Finds where the host would wait for a card, on the card or without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {
    f"aten::{name}"
    for name in ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero")
}
"""What reads a tensor's values to go on, or to know the shape of its result."""


class HostWait(Exception):
    """The host has read what the device computes."""


class _NoReads(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().partition(".")[0]
        if name in _READS:
            raise HostWait(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_waits(device: torch.device) -> Iterator[None]:
    """Raise where this thread would wait for ``device``.

    On CUDA torch itself finds every such wait, copies out of unpinned memory included. A CPU is
    never waited for, so there what reads a tensor's values stands for all.
    """
    if device.type != "cuda":
        with _NoReads():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")  # type: ignore[no-untyped-call]
