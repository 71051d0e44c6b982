"""The comparison on a CPU: its report, and stable-diffusion.cpp in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.benchmarks.cpu import (
    ALONE,
    CROWD,
    Ceiling,
    count_flops,
    measure,
    missing_cpp,
    report,
    stable_diffusion_cpp,
)
from scripts.paths import ROOT

PACKAGE = """
class StableDiffusion:
    def __init__(self, model_path, n_threads, wtype, verbose):
        print("loading", model_path, n_threads, wtype)

    def generate_image(self, init_image, width, height, sample_steps, strength, **rest):
        assert init_image.size == (width, height) == (64, 64)
        assert (sample_steps, strength, rest["sample_method"]) == (4, 1.0, "euler")
        print("a line of the library's own")
        return {images}
"""


def _environment(folder: Path, images: str) -> str:
    """Return the Python of an environment with a stand-in for the package."""
    (folder / "stable_diffusion_cpp.py").write_text(PACKAGE.format(images=images))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_stable_diffusion_cpp_answers_in_its_own_process(tmp_path: Path) -> None:
    python = _environment(tmp_path, "[init_image]")
    assert missing_cpp(python, full_size=True) == ""
    with stable_diffusion_cpp(python, tmp_path / "model", 64, 4, 2) as run:
        assert all(0 <= run() < 60 for _ in range(2))


def test_one_that_makes_no_image_is_an_error(tmp_path: Path) -> None:
    python = _environment(tmp_path, "[]")
    with (
        pytest.raises(RuntimeError, match="ended"),
        stable_diffusion_cpp(python, tmp_path / "model", 64, 4, 2) as run,
    ):
        run()


def test_it_says_why_it_is_left_out(tmp_path: Path) -> None:
    assert "embedded" in missing_cpp(sys.executable, full_size=False)
    assert "--sdcpp" in missing_cpp(None, full_size=True)
    assert "there is no" in missing_cpp(str(tmp_path / "none"), full_size=True)
    assert "has no stable_diffusion_cpp" in missing_cpp(sys.executable, full_size=True)


def test_the_first_round_does_not_count() -> None:
    answers = iter([9.0, 8.0, 1.0, 2.0, 3.0, 4.0])
    runs = {ALONE: lambda: next(answers), CROWD: lambda: next(answers)}
    assert measure(runs, 2) == {ALONE: [1.0, 3.0], CROWD: [2.0, 4.0]}


def test_the_arithmetic_is_that_of_products_and_attention() -> None:
    q = torch.randn(1, 1, 8, 4)
    assert count_flops(lambda: q[0, 0] @ torch.randn(4, 16)) == 2 * 8 * 4 * 16
    attention = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attention(q, q, q)) == 2 * (2 * 8 * 8 * 4)


def test_the_report_has_ratios_to_ours_alone_and_the_ceiling() -> None:
    seconds = {ALONE: [2.0, 1.0, 4.0], CROWD: [1.0], "diffusers, float32": [5.0]}
    text = report(["head"], seconds, 2e12, [Ceiling("bfloat16", 320.4, 365.0)])
    assert "| ours, alone | 2.000 (1.000 to 4.000) | 1.00 | 1000 |" in text
    assert "| ours, four at once | 1.000 (1.000 to 1.000) | 0.50 | 2000 |" in text
    assert "| diffusers, float32 | 5.000 (5.000 to 5.000) | 2.50 | 400 |" in text
    assert "| bfloat16 | 320 | 365 |" in text


@pytest.mark.slow("benchmarks")
def test_the_embedded_model_is_compared(tmp_path: Path) -> None:
    out = tmp_path / "cpu.md"
    command = [sys.executable, str(ROOT / "scripts" / "bench_cpu"), "--rounds", "1"]
    command += ["--steps", "2", "--size", "320", "--dtype", "bfloat16", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "stable-diffusion.cpp is left out" in done.stdout
    rows = [line.split("|")[1].strip() for line in out.read_text().splitlines() if line[:2] == "| "]
    assert {ALONE, CROWD, "diffusers, float32", "diffusers, bfloat16"} <= set(rows)
