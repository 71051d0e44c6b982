"""One process that decodes pictures, as the server sees it: a subprocess, a pipe in, a pipe out."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.request import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, Pixels
from server.errors import DecodersBusy, ImageError
from server.images.fit import ResizeMode
from server.images.workers.limits import KERNEL_LIMITS, DecoderLimits
from server.images.workers.measuring import Measured
from server.images.workers.messages import NotNow, read_message, write_message

WORKER = "server.images.workers.worker"
"""The module that a worker runs."""

_CRASHED = "the picture could not be decoded: its decoder crashed"
MOST_OWN_PIXELS = 2048 * 2048
"""Pixels of an image that is wanted at its own size; a larger one is made smaller, or refused."""
_MOST_ANSWER = max(3 * MAX_SIDE**2, 4 * MOST_OWN_PIXELS) + 64 * 1024
"""Bytes of the largest picture, and of what is said of it."""
_SECONDS_TO_END = 1.0
"""Given to a worker that has closed its pipe, as one that ends does."""
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "PYTHONHOME")
"""Environment variables of a worker. The server's hold its keys."""

MayGo = Callable[[int], bool]
"""Return whether a picture of that many pixels may be decoded now; called in a thread."""

logger = logging.getLogger(__name__)


class WorkerEnded(Exception):
    """The worker was ended for a reason that its job does not answer for."""


@dataclass(frozen=True)
class Fit:
    """The size to make of a picture, as `server.images.decode.prepare_image` takes it."""

    width: int | None
    height: int | None
    mode: ResizeMode
    auto_sizes: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class OwnSize:
    """An image at its own size, with its opacity as a fourth channel."""

    most_pixels: int = MOST_OWN_PIXELS
    shrinks: bool = True
    """Make a larger one smaller; else it is refused."""


Wanted = Fit | OwnSize | None
"""The form in which an upload's pixels are wanted; None: only whether it is sound."""


class Worker:
    """One process. One job at a time, from any thread."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[3])
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(search)
        # Threads and heaps of their own take address space that no picture needs.
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment["MALLOC_ARENA_MAX"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._ended_for: str | None = None

    @property
    def alive(self) -> bool:
        """Return whether it can take another job."""
        return self._ended_for is None and self.process.poll() is None

    def run(
        self, data: bytes | bytearray, fit: Wanted, limits: DecoderLimits, may_go: MayGo
    ) -> Pixels | None:
        """Return the pixels, or None without a fit.

        Raises ImageError, NotNow if `may_go(pixels)` is false, DecodersBusy if the worker ended
        through no fault of the picture, or WorkerEnded if it was ended from outside.
        """
        # Repeated in every answer, and not to be guessed: none is left over from a job before.
        job = secrets.token_hex(8)
        header: dict[str, Any] = {"job": job, "limits": asdict(limits)}
        if fit is not None:
            header |= asdict(fit)
        assert self.process.stdin is not None and self.process.stdout is not None
        pixels = 0
        measuring = Measured(self.process.pid, limits, self.end) if not KERNEL_LIMITS else None
        try:
            with measuring or contextlib.nullcontext():
                write_message(self.process.stdin, header, data)
                while (message := read_message(self.process.stdout, _MOST_ANSWER)) is not None:
                    answer, payload = message
                    if answer["job"] != job:
                        raise ValueError("an answer to another job")
                    if "pixels" not in answer:
                        return self._result(answer, payload, fit, limits, pixels)
                    pixels = _announced(answer["pixels"], pixels)
                    if measuring is not None:
                        measuring.pixels = pixels
                    go = may_go(pixels)
                    write_message(self.process.stdin, {"go": go})
                    if not go:
                        raise NotNow
        except ImageError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            # Not to be believed, and whatever else it has sent would be taken for the next answer.
            self.end("it answers nonsense")
            logger.warning("a decoder broke the protocol and was ended: %r", error)
            raise ImageError(_CRASHED) from None
        except OSError:
            pass  # The pipe broke: the worker has ended, which says more.
        raise self._death(limits, pixels)

    def _result(
        self,
        answer: dict[str, Any],
        payload: bytearray,
        fit: Wanted,
        limits: DecoderLimits,
        pixels: int,
    ) -> Pixels | None:
        if answer["retire"]:
            self.end("it has grown")
        if "refused" in answer:
            raise ImageError(str(answer["refused"]))
        if "over_memory" in answer:
            raise ImageError(limits.over_memory(pixels))
        if "failed" in answer:
            logger.error("a picture could not be decoded:\n%s", answer["failed"])
            raise ImageError("the picture could not be decoded")
        if fit is None:
            return None
        return _pixels(answer["shape"], payload, fit)

    def _death(self, limits: DecoderLimits, pixels: int) -> Exception:
        try:
            status = self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.end("it has closed its pipe")
            status = self.process.wait()
        reason = self._ended_for
        if reason == "cpu" or (os.name == "posix" and status == -signal.SIGPROF):
            return ImageError(limits.over_cpu(pixels))
        if reason == "memory":
            return ImageError(limits.over_memory(pixels))
        if reason == "nobody waits":
            return WorkerEnded()
        if reason is None and os.name == "posix" and status == -signal.SIGKILL:
            logger.error("a decoder was killed from outside, perhaps for want of memory")
            return DecodersBusy("the picture's decoder was killed")
        # By Windows a crash has a status too, of 32 bits.
        if reason is None and 0 < status < 256 and not pixels:
            logger.error("a decoder ended with status %d before it read its picture", status)
            return DecodersBusy("no decoder could be started")
        logger.warning("a decoder ended with status %d", status)
        return ImageError(_CRASHED)

    def end(self, reason: str) -> None:
        """Kill the process, for a reason that the running job is told."""
        self._ended_for = self._ended_for or reason
        self.process.kill()

    def reap(self) -> None:
        """Kill the process and leave nothing of it open."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()


def _announced(pixels: object, before: int) -> int:
    """Return the pixels that a worker announces. Raises ValueError where it may not."""
    if not isinstance(pixels, int) or pixels < 1 or before:
        raise ValueError("no size of a picture")
    return pixels


def _pixels(shape: Sequence[int], payload: bytearray, fit: Fit | OwnSize) -> Pixels:
    """Return the pixels of an answer. Raises ValueError or TypeError for any other picture."""
    height, width, channels = shape
    if isinstance(fit, OwnSize):
        if min(height, width) < 1 or height * width > fit.most_pixels or channels != 4:
            raise ValueError("no size that was asked for")
        return np.frombuffer(payload, np.uint8).reshape(height, width, 4)
    for side, asked in ((height, fit.height), (width, fit.width)):
        if side not in range(MIN_SIDE, MAX_SIDE + 1, SIDE_MULTIPLE) or asked not in (side, None):
            raise ValueError("no size that was asked for")
    if channels != 3:
        raise ValueError("no RGB")
    return np.frombuffer(payload, np.uint8).reshape(height, width, 3)
