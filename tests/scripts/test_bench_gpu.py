"""The GPU benchmark: what can be checked of it without a GPU."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.samplers import make_table
from tests.tiny_model import tiny_bundle

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_gpu"


def load_script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("bench_gpu", str(SCRIPT))
    spec = importlib.util.spec_from_loader("bench_gpu", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_gpu"] = module
    loader.exec_module(module)
    return module


bench = load_script()


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_full_model_has_the_size_of_stable_diffusion_1_5() -> None:
    with torch.device("meta"):
        parts = bench.make_parts(narrow=False)
    assert parameters(parts["unet"]) == 859_520_964
    assert parameters(parts["vae"]) == 83_653_863
    assert parameters(parts["text_encoder"]) == 123_060_480


def test_the_default_request_has_nineteen_evaluations() -> None:
    for scale in (bench.FULL, bench.NARROW):
        request = bench.ask(scale, 512, 512)
        table = make_table(request.sampler, request.steps, request.image_strength)
        assert len(table) == scale.evaluations
    assert bench.FULL.evaluations == 19


@pytest.mark.parametrize("mode", ["off", "graphs", "compile"])
def test_a_mode_reaches_the_engine(tiny_folder: Path, tmp_path: Path, mode: str) -> None:
    # A bundle of its own: a mode changes it.
    engine = bench.make_engine(tiny_bundle(tiny_folder), mode, bench.NARROW, tmp_path)
    assert engine.config.fast.acceleration.asked == mode
    assert engine.config.limits.max_rows == bench.buckets_of(bench.NARROW, mode)[-1]
    assert engine.config.max_batch >= bench.NARROW.mixed


def test_the_mixed_trace_is_mixed() -> None:
    requests = bench.mixed_requests(bench.FULL)
    assert len({(r.width, r.height) for r in requests}) == 3
    assert len({r.sampler for r in requests}) == 4
    assert len({r.steps for r in requests}) == 3
    assert len({r.cfg_scale for r in requests}) > 1
    assert all(10 <= r.steps <= 50 for r in requests)


def test_evaluations_are_timed_by_a_difference() -> None:
    assert bench.per_evaluation(lambda steps: 3.0 + 0.5 * steps, bench.FULL) == pytest.approx(0.5)


def test_psnr_tells_near_from_far() -> None:
    image = np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert bench.psnr(image, image) == float("inf")
    assert bench.psnr(image, 255 - image) < 15 < bench.psnr(image, image ^ 1)


def test_what_does_not_fit_into_the_time_is_skipped(tmp_path: Path) -> None:
    ledger = bench.Ledger(tmp_path / "part.json", until=time.time() + 100)
    assert ledger.measure("short", lambda: 1.5, 10)
    assert not ledger.measure("long", lambda: pytest.fail("was run"), 1000)
    assert json.loads((tmp_path / "part.json").read_text()) == {
        "short": 1.5,
        "long": bench.SKIPPED,
    }
    assert bench.cell(ledger, "long", scale=1e3) == bench.SKIPPED


def test_parts_share_the_time_and_the_last_ones_may_get_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that take all they may: what was not used comes to the next ones, and no more."""
    now, ran = [1000.0], []

    def run_child(part: str, work: Path, until: float, deadline: float) -> dict[str, Any]:
        assert until <= deadline <= 1000 + 8 * 60 + 1e-6
        ran.append((part, until - now[0]))
        now[0] = until if part == "ours graphs" else now[0] + 1
        if part == "compiled":
            now[0] = 1000 + 8 * 60
        return {"unet_parameters": 1}

    monkeypatch.setattr(bench, "run_child", run_child)
    monkeypatch.setattr(bench.time, "time", lambda: now[0])
    parts = ["build", "diffusers", "ours graphs", "ours compile", "compiled", "warm graphs"]
    results = bench.run_all(parts, tmp_path, 8)
    assert [part for part, _ in ran] == parts[:-1]
    assert results["warm graphs"] == {"ended": bench.SKIPPED}
    shares = dict(ran)
    assert shares["ours graphs"] == pytest.approx(478 * 4 / 12)
    assert shares["ours compile"] == pytest.approx(478 * 8 / 12 * 4 / 8)


def ours(good: bool) -> dict[str, Any]:
    check = {"sampler": "DDIM", "psnr": 50.0, "control": 10.0, "worst": 1, "good": good}
    return {
        "accelerated": "CUDA graphs",
        "start": {"imports": 1.0, "load": 1.0, "engine": 1.0, "first picture": 1.0, "whole": 4.0},
        "checks": [check],
        "latency": 0.1,
        "saturated": 12.0,
        "outstanding 1": {"rate": 12.0, "p50": 0.1, "worst": 0.2},
        "outstanding 2": bench.SKIPPED,
        "tick 2": {"tick": 0.010, "unet": 0.009, "rows": 2.0},
        "tick 32": {"tick": 0.100, "unet": 0.098, "rows": 32.0},
    }


def test_a_part_that_ran_out_of_time_is_reported_as_far_as_it_came() -> None:
    results = {
        "diffusers": {"latency": 0.5, "saturated": 2.0},
        "ours graphs": ours(good=True),
        "ours compile": {"ended": bench.SKIPPED},
    }
    report = bench.make_report(results, ["graphs", "compile"], bench.FULL, ["head"])
    skipped = bench.SKIPPED
    lines = report.splitlines()
    assert "all good" in report
    latency = f"at most 180, then 120 | 500 | not run | 100 | {skipped} |"
    assert f"| unloaded latency, p50, ms | {latency}" in lines
    assert "at least 4 |  | not run | 6.00 |" in report
    assert "outside the U-Net | at most 3 |  | not run | 2.0 |" in report
    assert f"| 2 | {skipped} | {skipped} | {skipped} |" in lines
    assert "| 2 | 2.0 | 10.00 | 9.00 | 10.0 % |" in lines
    assert "| graphs, cold | 1.0 | 1.0 | 1.0 | 1.0 | 4.0 |" in lines
    assert "| graphs, warm | not run |" in report
    assert ("Not run on CUDA" in report) is not torch.cuda.is_available()


def test_figures_of_a_wrong_computation_are_marked() -> None:
    results = {"ours graphs": ours(good=True), "ours compile": ours(good=False)}
    assert "WRONG" in bench.make_report(results, ["graphs", "compile"], bench.FULL, [])
    assert "Correctness: not run" in bench.make_report({}, ["graphs"], bench.FULL, [])


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no CUDA")
def test_without_cuda_the_full_benchmark_is_refused() -> None:
    done = run()
    assert done.returncode == 2
    assert "--narrow" in done.stderr
    assert "fast is not off" in run("--acceleration", "off,fast").stderr


@pytest.mark.slow
def test_the_narrow_benchmark_runs_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    done = run("--narrow", "--profile", "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = out.read_text()
    assert "all good" in report
    assert bench.SKIPPED not in report
    assert "| graphs, warm |" in report
