"""Timers of units of work, which bound how far the host runs ahead of the device.

On CUDA a call returns before its work is done. Waiting for every step would leave the card idle
while the host decides on the next one, so the host stays one unit ahead: a unit's time is read when
the next one has been launched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Elapsed = Callable[[], float]
"""Waits for the end of a unit and gives its seconds."""


class DeviceTimer(Protocol):
    """Times one unit after another."""

    @property
    def runs_ahead(self) -> bool:
        """Return whether a unit may still be running when `stop` returns."""
        ...

    def start(self) -> None: ...

    def stop(self) -> Elapsed: ...


class HostTimer:
    """For a device whose work is done when the call returns."""

    runs_ahead = False

    def __init__(self) -> None:
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> Elapsed:
        seconds = time.perf_counter() - self._started
        return lambda: seconds


class CudaTimer:
    """By events in the current stream: the time on the card alone."""

    runs_ahead = True

    def __init__(self) -> None:
        self._started = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        self._started = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._started.record()

    def stop(self) -> Elapsed:
        started, stopped = self._started, torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stopped.record()

        def elapsed() -> float:
            stopped.synchronize()
            milliseconds: float = started.elapsed_time(stopped)
            return milliseconds / 1e3

        return elapsed


def make_timer(device: torch.device) -> DeviceTimer:
    """The one for a device."""
    return CudaTimer() if device.type == "cuda" else HostTimer()
