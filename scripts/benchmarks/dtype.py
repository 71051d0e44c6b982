"""Print how fast U-Net and VAE run in bfloat16 against float32 on this CPU, as ratios.

.venv/bin/python scripts/bench_dtype [--model embedded] [--size 320] [--rows 2]
.venv/bin/python scripts/bench_dtype --full-size     # Stable Diffusion 1.5 of random weights

Full size takes 8 GB of memory, 2.2 GB of disk, and minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# On a machine that does other work too, threads that spin at a barrier cost most of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from models.bundle import ModelBundle
from models.cpu import choose_by_cpu, cpu_name, read_cpuinfo
from models.loading.checkpoint import SD15_FOLDER
from models.loading.loader import load_bundle
from scripts.checkpoints.random_checkpoint import write_checkpoint
from server.cpus import set_tensor_threads


def passes(bundle: ModelBundle, size: int, rows: int) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name: ``rows`` of the U-Net, an encode and a decode of one image."""
    h, w = bundle.latent_size(size, size)
    latents = torch.randn(rows, 4, h, w).to(bundle.dtype)
    text = torch.randn(rows, bundle.text_length, bundle.text_width).to(bundle.dtype)
    steps = torch.full((rows,), 500.0)
    image = torch.rand(1, 3, size, size).to(bundle.dtype) * 2 - 1
    return {
        f"U-Net, {rows} rows": lambda: bundle.unet(latents, steps, encoder_hidden_states=text),
        "VAE encode": lambda: bundle.vae.encode(image),
        "VAE decode": lambda: bundle.vae.decode(latents[:1]),
    }


def seconds(run: Callable[[], object]) -> float:
    """Return how long one call takes."""
    began = time.perf_counter()
    with torch.inference_mode():
        run()
    return time.perf_counter() - began


def compare(model: str, size: int, rows: int, rounds: int) -> list[str]:
    """Return a line a pass. The dtypes take turns, so that other work here falls on both alike."""
    kinds = [
        passes(load_bundle(model, device="cpu", dtype=dtype), size, rows)
        for dtype in ("float32", "bfloat16")
    ]
    lines = []
    for name in kinds[0]:
        for kind in kinds:
            seconds(kind[name])
        turns = [[seconds(kind[name]) for kind in kinds] for _ in range(rounds)]
        full, half = (statistics.median(column) for column in zip(*turns, strict=True))
        lines.append(
            f"{name}: bfloat16 takes {half / full:.2f} of float32's {full:.3f} s "
            f"({size} x {size}, median of {rounds})"
        )
    return lines


def main() -> None:
    """Print the CPU, what `auto` takes on it, and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--full-size", action="store_true", help="random weights, not a model")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="10, at full size 3")
    options = parser.parse_args()
    cpuinfo = read_cpuinfo()
    choice = choose_by_cpu(cpuinfo)
    taken = "bfloat16" if choice.bfloat16 else "float32"
    print(f"{cpu_name(cpuinfo)}; auto takes {taken}: {choice.reason}")
    print(f"{set_tensor_threads(0)} threads, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if options.full_size:
            model = str(Path(folder) / "random.safetensors")
            write_checkpoint(Path(model), SD15_FOLDER)
        rounds = options.rounds or (3 if options.full_size else 10)
        for line in compare(model, options.size, options.rows, rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
