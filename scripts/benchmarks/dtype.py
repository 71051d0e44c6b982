"""Print how fast a U-Net row runs in bfloat16 against float32 on this CPU, as a ratio.

.venv/bin/python scripts/bench_dtype [--model embedded] [--size 320] [--rows 2]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from models.bundle import ModelBundle
from models.loading.loader import load_bundle


def forward_seconds(bundle: ModelBundle, size: int, rows: int) -> float:
    """One forward, in seconds."""
    h, w = bundle.latent_size(size, size)
    latents = torch.randn(rows, 4, h, w, dtype=bundle.dtype)
    text = torch.randn(rows, bundle.text_length, bundle.text_width, dtype=bundle.dtype)
    started = time.perf_counter()
    with torch.inference_mode():
        bundle.unet(latents, torch.full((rows,), 500.0), encoder_hidden_states=text)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    bundles = [load_bundle(options.model, device="cpu", dtype=d) for d in ("float32", "bfloat16")]
    for bundle in bundles:
        forward_seconds(bundle, options.size, options.rows)
    # Turn by turn, so that whatever else this machine does falls on both alike.
    times = [
        [forward_seconds(bundle, options.size, options.rows) for bundle in bundles]
        for _ in range(options.rounds)
    ]
    full, half = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"bfloat16 takes {half / full:.2f} of float32's time "
        f"({options.rows} rows, {options.size} x {options.size}, median of {options.rounds})"
    )


if __name__ == "__main__":
    main()
