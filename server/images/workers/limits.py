"""Limits of the work that the decoding of one picture may be, and their enforcement."""

from __future__ import annotations

import sys
from dataclasses import dataclass

LARGE_PIXELS = 16_000_000
"""Pixels that the plain limits are for; of larger pictures one is decoded at a time."""

_SECONDS_A_PIXEL = 0.1e-6
_BYTES_A_PIXEL = 12
_MIB = 1024 * 1024

KERNEL_LIMITS = sys.platform == "linux"
"""Return whether the kernel ends a decoder at its limits. Windows has none and macOS ignores that
on memory: there the server measures its decoders and ends them."""


@dataclass(frozen=True)
class DecoderLimits:
    """CPU seconds, and MiB above the idle worker, for pictures of up to 16 million pixels."""

    seconds: float = 2.0
    mib: int = 600

    def cpu_seconds(self, pixels: int) -> float:
        """Return the seconds of CPU that a picture of that many pixels may take."""
        return self.seconds + _SECONDS_A_PIXEL * max(0, pixels - LARGE_PIXELS)

    def memory_bytes(self, pixels: int) -> int:
        """Return the bytes above the idle worker that a picture of that many pixels may take."""
        return self.mib * _MIB + _BYTES_A_PIXEL * max(0, pixels - LARGE_PIXELS)

    def over_cpu(self, pixels: int) -> str:
        """Return the reason why a picture was not decoded to the end."""
        return f"the picture takes more than {self.cpu_seconds(pixels):.3g} s to decode"

    def over_memory(self, pixels: int) -> str:
        """Return the reason why a picture was not decoded to the end."""
        mib = self.memory_bytes(pixels) // _MIB
        return f"the picture takes more than {mib} MiB of memory to decode"


def limits_in_words() -> str:
    """Return who ends a decoder that goes beyond its limits, for the operator."""
    if KERNEL_LIMITS:
        return "ended by the kernel at their limits of CPU time and memory"
    return "measured and ended by the server: this system has no limits of its own for them"
