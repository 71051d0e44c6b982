"""A process that decodes pictures: bytes come on standard input, pixels go to standard output.

Run as `python -m server.images.workers.worker` by `server.images.workers.pool`. It imports no more
than decoding takes, reads no settings, and ends when its standard input does, so never outlives the
server.

A job is answered by `{"pixels": N}` as soon as the size is known; on `{"go": true}` the picture is
decoded within its limits, else the job is dropped. Every answer repeats the job's name.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from server.errors import ImageError
from server.images.decode import decode_image, decode_with_opacity, prepare_image
from server.images.fit import ResizeMode
from server.images.workers.limits import KERNEL_LIMITS, DecoderLimits
from server.images.workers.messages import NotNow, read_message, write_message

_RETIRE_ABOVE = 64 * 1024 * 1024
"""A worker whose address space has grown by this many bytes is replaced."""


class Limiter:
    """Lets the kernel end this process at a bound of CPU time, and refuse it memory at another.

    Where the kernel does not, the server measures; then this does nothing.
    """

    def __init__(self) -> None:
        self._idle = _address_space()

    def set(self, limits: DecoderLimits, pixels: int = 0) -> None:
        """Bound the work from here on; again with the pixels once they are known."""
        if not KERNEL_LIMITS:
            return
        import resource

        left = signal.getitimer(signal.ITIMER_PROF)[0]
        more = limits.cpu_seconds(pixels) - (limits.cpu_seconds(0) if pixels else 0.0)
        # CPU time of all threads, to a few milliseconds; RLIMIT_CPU knows whole seconds alone.
        signal.setitimer(signal.ITIMER_PROF, left + more)
        space = self._idle + limits.memory_bytes(pixels)
        resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))

    def lift(self) -> None:
        """End the bounds."""
        if KERNEL_LIMITS:
            import resource

            signal.setitimer(signal.ITIMER_PROF, 0.0)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

    @property
    def grown(self) -> int:
        """Bytes of address space beyond what the idle process had."""
        return _address_space() - self._idle


def _address_space() -> int:
    if not KERNEL_LIMITS:
        return 0
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Decode one picture after another until standard input ends."""
    requests = sys.stdin.buffer
    # Whatever a library prints must not look like an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if KERNEL_LIMITS:
        import resource

        # A crash is to leave no picture behind, and nothing here writes a file.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    limiter = Limiter()
    while (message := read_message(requests)) is not None:
        header, payload = message
        del message
        pixels = b""
        try:
            answer, pixels = _decode(header, payload, requests, answers, limiter)
        except NotNow:
            continue
        finally:
            del payload
            limiter.lift()
        answer["retire"] = limiter.grown > _RETIRE_ABOVE
        write_message(answers, answer, pixels)


def _decode(
    header: dict[str, Any],
    payload: bytearray,
    requests: IO[bytes],
    answers: IO[bytes],
    limiter: Limiter,
) -> tuple[dict[str, Any], bytes]:
    limits = DecoderLimits(**header["limits"])
    job = {"job": header["job"]}
    announced = 0

    def on_size(pixels: int) -> None:
        nonlocal announced
        if not announced:
            announced = pixels
            write_message(answers, job | {"pixels": pixels})
            reply = read_message(requests)
            if reply is None or not reply[0]["go"]:
                raise NotNow
            limiter.set(limits, pixels)

    limiter.set(limits)
    try:
        if "most_pixels" in header:
            most, shrinks = header["most_pixels"], header["shrinks"]
            made = decode_with_opacity(payload, most, on_size, shrinks=shrinks)
            return job | {"shape": made.shape}, made.tobytes()
        if "mode" not in header:
            decode_image(payload, on_size)
            return job | {"shape": None}, b""
        mode = ResizeMode(header["mode"])
        sizes = [(width, height) for width, height in header["auto_sizes"]]
        made = prepare_image(payload, header["width"], header["height"], mode, sizes, on_size)
        return job | {"shape": made.shape}, made.tobytes()
    except MemoryError:
        return job | {"over_memory": True}, b""
    except ImageError as error:
        # C libraries that get no memory say only that they failed.
        short = KERNEL_LIMITS and limits.memory_bytes(announced) - limiter.grown < 4 * announced
        return job | ({"over_memory": True} if short else {"refused": error.reason}), b""
    except NotNow:
        raise
    except Exception:
        return job | {"failed": traceback.format_exc()}, b""


if __name__ == "__main__":
    main()
