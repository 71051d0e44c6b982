"""The table of what quantised layers change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def compare(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/compare_quantized", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow("benchmarks")
def test_it_prints_what_int8_changes(tiny_folder: Path) -> None:
    pytest.importorskip("torchao")
    done = compare("--model", str(tiny_folder), "--steps", "10")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    int8 = [line for line in lines if line[-6:-3] == ["int8", "in", "float32"]]
    assert [line[0] for line in int8] == ["K_DPMPP_2M", "K_EULER_ANCESTRAL", "DDIM", "K_HEUN"]
    for line in int8:
        ratio, _, latents = map(float, line[-3:])
        assert ratio > 30
        assert 0 < latents < 0.5
    (stored,) = (line for line in lines if line[:-2] == ["int8", "in", "float32"])
    (plain,) = (line for line in lines if line[:-2] == ["float32"])
    assert float(stored[-1]) < float(plain[-1])


@pytest.mark.slow("benchmarks")
def test_what_cannot_be_had_is_said() -> None:
    done = compare("--quantize", "fp8", "--device", "cpu")
    assert done.returncode == 2
    assert "IMG2IMG_QUANTIZE=fp8 needs a CUDA device" in done.stderr
