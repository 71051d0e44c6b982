"""How much of a device is used: its memory, and its time where NVML tells. No torch until asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DeviceUsage:
    """Bytes of a device's memory, and the share of its time in which it works.

    ``allocated`` is held by tensors and ``reserved`` by torch for them; ``total`` and ``free``
    count all processes. On a CPU the memory is the machine's, and what this process holds of it is
    both. ``utilization`` is in [0, 1], over the last second or less; None where nothing tells.
    """

    total: int
    free: int
    allocated: int
    reserved: int
    utilization: float | None = None


def device_usage(device: torch.device) -> DeviceUsage:
    """Return what is used of a device now. Safe from any thread, also while graphs are captured."""
    if device.type != "cuda":
        import psutil

        machine, held = psutil.virtual_memory(), psutil.Process().memory_info().rss
        return DeviceUsage(machine.total, machine.available, held, held)
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return DeviceUsage(
        total,
        free,
        torch.cuda.memory_allocated(device),
        torch.cuda.memory_reserved(device),
        _utilization(device),
    )


def _utilization(device: torch.device) -> float | None:
    import torch

    try:
        return torch.cuda.utilization(device) / 100.0
    except Exception:  # no NVML bindings (nvidia-ml-py), no driver's library, or a slice of a card
        return None
