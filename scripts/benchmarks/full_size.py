"""Check that a full-size Stable Diffusion 1.5 checkpoint loads: every tensor, and the memory.

Writes a file of random weights in the original layout into a temporary folder (about 2 GB in
float16, which needs 5 GB of memory), loads it in a process of its own, and compares every tensor
with what diffusers' converter makes of the file. Prints the most host memory that loading took,
beyond what the process had before, against the size of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from models.bundle import ModelBundle
from models.loading.checkpoint import SD15_FOLDER
from models.loading.loader import load_bundle, load_checkpoint
from models.spec import ModelSpec
from scripts.checkpoints.random_checkpoint import converted_by_diffusers, write_checkpoint
from scripts.paths import python_path

KNOWN = {"unet": (686, 859_520_964), "vae": (248, 83_653_863), "text_encoder": (196, 123_060_480)}
"""Tensors and values of Stable Diffusion 1.5's parts, as published."""
MOST_MEMORY = 1.2


def main() -> int:
    """0 if all is as it should be."""
    options = _options()
    if options.load:
        print(json.dumps(_load(Path(options.load), options)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "random.safetensors"
        began = time.perf_counter()
        write_checkpoint(path, SD15_FOLDER, dtype=getattr(torch, options.dtype), ema=options.ema)
        size = path.stat().st_size
        print(f"wrote    {size / 1e9:.2f} GB, {options.dtype}, in {_since(began)}", flush=True)
        return _check(path, size, options)


def _check(path: Path, size: int, options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "scripts.benchmarks.full_size", "--load", str(path)]
    command += ["--dtype", options.dtype, "--device", options.device]
    command += ["--ema"] * options.ema
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    kept, peak = measured["kept"], measured["peak"]
    print(
        f"loaded   in {measured['seconds']:.1f} s, weights {kept / 1e9:.2f} GB on {options.device}"
    )
    print(f"peak     {peak / 1e9:.2f} GB of host memory, {peak / size:.3f} of the file")
    bundle = _bundle(path, options)
    theirs = converted_by_diffusers(path, SD15_FOLDER, ema=options.ema)
    wrong = 0 if peak < MOST_MEMORY * size or options.ema else 1
    for part, tensors in theirs.items():
        ours = getattr(bundle, part).state_dict()
        both = [name for name in ours if name in tensors]
        equal = sum(torch.equal(ours[name].cpu(), tensors[name]) for name in both)
        values = sum(value.numel() for value in ours.values())
        same = equal == len(ours) == len(tensors) and (len(ours), values) == KNOWN[part]
        wrong += not same
        words = "as published" if (len(ours), values) == KNOWN[part] else f"not {KNOWN[part]}"
        print(f"{part:<13}{equal} of {len(tensors)} tensors equal, {values:,} values, {words}")
    print("all is as it should be" if not wrong else "SOMETHING IS WRONG")
    return 1 if wrong else 0


def _load(path: Path, options: argparse.Namespace) -> dict[str, float]:
    # What the libraries themselves take is no part of loading: bring them in beforehand.
    load_bundle(device=options.device)
    before, began = _resident("VmRSS"), time.perf_counter()
    bundle = _bundle(path, options)
    seconds = time.perf_counter() - began
    return {"kept": bundle.weight_bytes, "peak": _resident("VmHWM") - before, "seconds": seconds}


def _bundle(path: Path, options: argparse.Namespace) -> ModelBundle:
    return load_checkpoint(
        path,
        ModelSpec(str(path), ema=options.ema),
        name="random",
        device=torch.device(options.device),
        dtype=getattr(torch, options.dtype),
    )


def _resident(field: str) -> int:
    """Resident memory of this process in bytes, now (VmRSS) or at most so far (VmHWM).

    Mapped files count. (ru_maxrss will not do: a process inherits it from the one that starts it.)
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _since(began: float) -> str:
    return f"{time.perf_counter() - began:.1f} s"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--ema", action="store_true", help="with EMA keys, and load those")
    parser.add_argument("--device", default="cpu", help="where it is loaded to [cpu]")
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
