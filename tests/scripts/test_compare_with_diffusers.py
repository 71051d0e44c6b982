"""The table of disagreements with diffusers that docs/usage.md prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow("benchmarks")
def test_it_prints_a_line_for_each_sampler(tiny_folder: Path) -> None:
    command = [sys.executable, "scripts/compare_with_diffusers", "--model", str(tiny_folder)]
    options = ["--steps", "10", "--samplers", "K_EULER", "K_DPMPP_2S_ANCESTRAL"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    euler, single_step = done.stdout.splitlines()[-2:]
    name, pixels, latents = euler.split()
    assert name == "K_EULER"
    assert int(pixels) <= 2
    assert float(latents) < 1e-3
    assert single_step.split()[0] == "K_DPMPP_2S_ANCESTRAL"
