"""A start from cold, in a process of its own.

``python -m scripts.benchmarks.gpu.start FOLDER SIZE SPAWNED`` prints its seconds by phase as JSON.
SPAWNED is when it was begun, in seconds since the epoch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from scripts.benchmarks.gpu.ledger import Ledger
from scripts.benchmarks.gpu.plan import FULL, Scale, ask
from scripts.paths import ROOT

PHASES = ("imports", "weights", "acceleration", "warm-up", "first picture", "whole")


def measure_start(folder: Path, work: Path, scale: Scale, ledger: Ledger) -> None:
    """Once with nothing compiled, once with the kernels and the bytecode that the first left, which
    the image has."""
    from scripts.benchmarks.serving.processes import python_environment

    environment = python_environment() | {
        "TRITON_CACHE_DIR": str(work / "triton"),
        "PYTHONPYCACHEPREFIX": str(work / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    for name in ("nothing compiled", "all compiled"):
        if name == "all compiled" and not ledger.fits(28.0):
            return  # the first fits, or the part would not have begun
        command = [sys.executable, "-m", "scripts.benchmarks.gpu.start", str(folder)]
        done = subprocess.run(
            [*command, str(scale.size), str(time.time())],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=180,
        )
        ledger.put(json.loads(done.stdout.splitlines()[-1]), "start", name)


def main(folder: str, size: int, spawned: float) -> None:
    """Start as the server does, make one picture, print the seconds."""
    from dataclasses import replace

    from models.loading.loader import load_bundle
    from scripts.benchmarks.gpu.device import half
    from scripts.benchmarks.gpu.engine import running_engine

    scale = replace(FULL, size=size)
    marks = [spawned, time.time()]
    bundle = load_bundle(folder, dtype=str(half()).removeprefix("torch."))
    marks.append(time.time())
    with running_engine(bundle, "graphs", scale) as (engine, seconds):
        ready = time.time()
        engine.submit(ask(scale)).wait(600)
        phases = {"imports": marks[1] - marks[0], "weights": marks[2] - marks[1]} | seconds
        phases["first picture"] = time.time() - ready
        phases["whole"] = time.time() - spawned
    print(json.dumps(phases), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
