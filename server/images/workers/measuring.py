"""Limits of decoders on systems whose kernel enforces none: measured, and ended above them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Literal

from server.images.workers.limits import DecoderLimits

_SECONDS_BETWEEN = 0.05


class Measured:
    """Measures the process ``pid`` in a context, and calls ``end`` above its limits.

    ``pixels`` are those of the picture, once they are known.
    """

    def __init__(
        self, pid: int, limits: DecoderLimits, end: Callable[[Literal["cpu", "memory"]], None]
    ) -> None:
        import psutil

        self.pixels = 0
        self._limits = limits
        self._end = end
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Measured:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        with contextlib.suppress(psutil.Error):
            cpu, memory = self._use()
            while not self._done.wait(_SECONDS_BETWEEN):
                cpu_now, memory_now = self._use()
                if cpu_now - cpu > self._limits.cpu_seconds(self.pixels):
                    self._end("cpu")
                elif memory_now - memory > self._limits.memory_bytes(self.pixels):
                    self._end("memory")

    def _use(self) -> tuple[float, int]:
        times = self._process.cpu_times()
        return times.user + times.system, self._process.memory_info().rss
