"""A run: parts in processes, the most important first, results kept and the page made as they come.

The parts that measure share a process and a model; where one of them breaks the device for it (an
illegal access ends a CUDA context), the next ones are given a new process. Serving and starting
are processes of their own by nature.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from scripts.benchmarks.gpu.ledger import RUNNING, Ledger
from scripts.benchmarks.gpu.plan import FULL, MEASURED, NARROW, SECONDS, Scale
from scripts.paths import python_path

_GRACE = 5.0
"""Seconds that a process has to end in, once nothing more should be begun."""


def run_all(
    results: Path,
    parts: Sequence[str],
    *,
    narrow: bool,
    minutes: float,
    command: str,
    make_page: Callable[[], None],
) -> None:
    """Measure ``parts`` into the file ``results``, and make the page after every process.

    What does not fit into ``minutes`` is left out. Ctrl-C and SIGTERM end it early: the page is
    made all the same.
    """
    from scripts.benchmarks.gpu import device

    scale = NARROW if narrow else FULL
    results.unlink(missing_ok=True)
    until = time.time() + 60 * minutes
    ledger = Ledger(results, until)
    ledger.put(device.environment(command), "environment")
    ledger.put(asdict(scale) | {"evaluations": scale.evaluations, "narrow": narrow}, "scale")
    ledger.put(list(parts), "wanted")
    for cut in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(cut, _end)
    # Whatever hangs, a server included: it is paid for by the minute.
    signal.alarm(math.ceil(60 * minutes + 2 * _GRACE))
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder, suppress(KeyboardInterrupt):
        try:
            _measure(results, [p for p in parts if p in MEASURED], narrow, until, Path(folder))
            make_page()
            _serve(results, [p for p in parts if p not in MEASURED], scale, until, Path(folder))
        finally:
            signal.alarm(0)
            make_page()


def _end(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _measure(results: Path, parts: Sequence[str], narrow: bool, until: float, folder: Path) -> None:
    """The parts that share a model. A part that ended its process is not tried again."""
    left = list(parts)
    first = True
    while left or first:
        command = [sys.executable, "-m", "scripts.benchmarks.gpu.run", str(results), str(until)]
        command += [str(folder), "narrow" if narrow else "full", *left]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": python_path()})
        try:
            process.wait(max(1.0, until - time.time()) + _GRACE)
        except subprocess.TimeoutExpired:
            print("== ended: no time left", flush=True)
        finally:
            _stop(process)
        ledger = Ledger(results)
        known = ledger.results.get("parts", {})
        for part in left:
            if known.get(part, {}).get("status") == RUNNING:
                ledger.put(known[part] | {"status": "its process ended"}, "parts", part)
        still = [part for part in left if part not in known]
        if len(still) == len(left):
            return
        left, first = still, False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _serve(results: Path, parts: Sequence[str], scale: Scale, until: float, folder: Path) -> None:
    from scripts.benchmarks.gpu.http import measure_http
    from scripts.benchmarks.gpu.start import measure_start

    ledger = Ledger(results, until)
    model = folder / "model"
    where = "cuda" if ledger.results["environment"]["cuda"] else "cpu"
    dtype = ledger.results["environment"]["dtype"]
    works = {
        "http": lambda: measure_http(model, where, dtype, scale, ledger),
        "start": lambda: measure_start(model, folder, scale, ledger),
    }
    for part in parts:
        if not (model / "model_index.json").exists():
            ledger.put({"status": "no model was written", "seconds": 0.0}, "parts", part)
        else:
            ledger.run(part, works[part], SECONDS[part] if scale is FULL else 0.0)


def main(results: str, until: str, folder: str, size: str, *parts: str) -> None:
    """In a process of its own: write the model, once, and measure the parts that share it."""
    from scripts.benchmarks.gpu.correctness import measure_correctness
    from scripts.benchmarks.gpu.device import measure_device
    from scripts.benchmarks.gpu.diffusers_baseline import measure_diffusers
    from scripts.benchmarks.gpu.engine import measure_engine
    from scripts.benchmarks.gpu.forwards import measure_unet, measure_vae
    from scripts.benchmarks.gpu.model import RandomModel

    _keep_libraries_quiet()
    narrow = size == "narrow"
    scale = NARROW if narrow else FULL
    ledger = Ledger(Path(results), float(until))
    started = time.time()
    model = RandomModel(narrow)
    written = Path(folder) / "model"
    if not (written / "model_index.json").exists():  # the last file of it
        shutil.rmtree(written, ignore_errors=True)
        model.write(written)
    ledger.put(time.time() - started, "model")
    works: dict[str, Callable[[], None]] = {
        "device": lambda: measure_device(scale, ledger),
        "correctness": lambda: measure_correctness(model, scale, ledger),
        "unet": lambda: measure_unet(model, scale, ledger),
        "vae": lambda: measure_vae(model, scale, ledger),
        "engine": lambda: measure_engine(model, scale, ledger),
        "diffusers": lambda: measure_diffusers(model, scale, ledger),
    }
    for part in parts:
        ledger.run(part, works[part], 0.0 if narrow else SECONDS[part])
        free_memory()


def free_memory() -> None:
    """Give back what a part held on the device, which the next one is to have."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _keep_libraries_quiet() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


if __name__ == "__main__":
    main(*sys.argv[1:])
