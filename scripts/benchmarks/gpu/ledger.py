"""What a run has measured so far, kept in a file: a run that is cut off has lost nothing."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.errors import first_line

SKIPPED = "skipped: no time left"
DONE, RUNNING = "done", "running"


class Ledger:
    """Results by part, written to ``file`` at every change; several processes take turns at it.

    Nothing is begun that would end after ``until``, in seconds since the epoch.
    """

    def __init__(self, file: Path, until: float = math.inf, say: Callable[[str], None] = print):
        self._file, self._until, self._say = file, until, say
        self.results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def put(self, value: Any, *path: str) -> None:
        """Keep a figure at a path, such as "unet", "fast", "2"; say it."""
        place = self.results
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
        if path[0] != "parts":
            self._say(f"{' '.join(path)}: {in_words(value)}")
        self._write()

    def fits(self, seconds: float) -> bool:
        """Return whether something of about ``seconds`` would end in time."""
        return time.time() + seconds < self._until

    def run(self, part: str, work: Callable[[], None], seconds: float) -> None:
        """Run a part of about ``seconds``; note what became of it. Raises what broke the device."""
        if not self.fits(seconds):
            self.put({"status": SKIPPED, "seconds": 0.0}, "parts", part)
            self._say(f"== {part}: {SKIPPED}")
            return
        self._say(f"== {part}")
        self.put({"status": RUNNING, "seconds": 0.0}, "parts", part)
        started, status = time.monotonic(), "cut off"
        try:
            work()
            status = DONE
        except Exception as error:
            status = f"failed: {first_line(error)}"
            if "CUDA error" in status:  # of this process's context nothing can be had any more
                raise
        finally:
            spent = time.monotonic() - started
            self.put({"status": status, "seconds": spent}, "parts", part)
            self._say(f"== {part}: {status}, {spent:.0f} s")

    def _write(self) -> None:
        # Whoever reads it meanwhile, or is to read it after this process is ended, finds it whole.
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self.results, indent=1) + "\n")
        new.replace(self._file)


def in_words(value: Any) -> str:
    """Return a figure, or several, in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(one)}" for name, one in value.items())
    if isinstance(value, list):
        return f"{len(value)} lines"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
