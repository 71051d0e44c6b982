"""The device: its clock, its graphs and its limits. All that only a card can run is here."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from models.acceleration.cuda_graphs import Capturer, CudaCapturer, EagerCapturer
from models.device import synchronize
from scripts.benchmarks.gpu.ledger import Ledger
from scripts.benchmarks.gpu.plan import Scale

_WARM_UP = 3


def device() -> torch.device:
    """Return the first card, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half() -> torch.dtype:
    """Return the dtype that is served: float16, on a CPU float32."""
    return torch.float16 if device().type == "cuda" else torch.float32


def environment(command: str) -> dict[str, str]:
    """Return where a run took place."""
    cuda = device().type == "cuda"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {os.cpu_count()} cores"
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": _revision(),
        "device": name,
        "cuda": str(torch.version.cuda) if cuda else "",
        "cudnn": str(cudnn) if cuda else "",
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "dtype": str(half()).removeprefix("torch."),
    }


def _revision() -> str:
    git = shutil.which("git")  # a machine with a card may have a copy of the files alone
    if git is None:
        return "unknown"
    command = [git, "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def peak_memory() -> int:
    """Return the most that torch held on the device, in bytes; on a CPU, the process in memory."""
    if device().type == "cuda":
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_capturer() -> Capturer:
    """Return what captures graphs; on a CPU what stands in for it."""
    where = device()
    return CudaCapturer(where) if where.type == "cuda" else EagerCapturer()


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """Return ``work`` as a replay of one graph, which costs no launches. Raises RuntimeError."""
    return make_capturer().capture(work)


def median_ms(work: Callable[[], object], rounds: int) -> float:
    """Return the median milliseconds that ``work`` takes on the device, warmed up."""
    for _ in range(_WARM_UP if rounds > 1 else 1):
        work()
    synchronize(device())
    return statistics.median(_one_ms(work) for _ in range(rounds))


def _one_ms(work: Callable[[], object]) -> float:
    if device().type != "cuda":
        started = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - started)
    before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the seconds that ``work`` takes, the device's included, by the host's clock."""
    synchronize(device())
    started = time.perf_counter()
    work()
    synchronize(device())
    return time.perf_counter() - started


@torch.inference_mode()
def measure_device(scale: Scale, ledger: Ledger) -> None:
    """The device's limits: TFLOP/s of one large product, GB/s (read and written) of one copy."""
    side = scale.product
    one, other = (torch.randn(side, side, device=device(), dtype=half()) for _ in range(2))
    ms = median_ms(captured(lambda: one @ other), scale.rounds)
    ledger.put(2 * side**3 / ms / 1e9, "device", "product_tflops")
    source = torch.empty(scale.copy * 2**20, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    ms = median_ms(captured(lambda: target.copy_(source)), scale.rounds)
    ledger.put(2 * source.numel() / ms / 1e6, "device", "copy_gbs")
