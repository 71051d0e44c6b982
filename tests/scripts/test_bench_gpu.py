"""The GPU benchmark: what can be checked of it without a GPU."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from pipelines.engine import EngineConfig
from pipelines.samplers import make_table

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
    tokenizer = CLIPTokenizer.from_pretrained(bench.tokenizer_folder())
    with torch.device("meta"):
        parts = bench.make_parts(narrow=False, tokenizer=tokenizer)
    assert parameters(parts["unet"]) == 859_520_964
    assert parameters(parts["vae"]) == 83_653_863
    assert parameters(parts["text_encoder"]) == 123_060_480


def test_the_default_request_has_nineteen_evaluations() -> None:
    request = bench.ask(512, 512)
    table = make_table(request.sampler, request.steps, request.image_strength)
    assert len(table) == bench.EVALUATIONS


def test_options_reach_the_engine_s_configuration() -> None:
    config = bench.engine_config(bench.FULL, ["exact=true", "limits.max_rows=12"])
    assert isinstance(config, EngineConfig)
    assert config.exact
    assert config.limits.max_rows == 12
    assert config.max_batch == max(bench.FULL.concurrency)
    assert bench.parse_pairs(["a=1", "b=max", "c=null"]) == {"a": 1, "b": "max", "c": None}
    with pytest.raises(SystemExit, match="NAME=VALUE"):
        bench.parse_pairs(["exact"])


def test_the_mixed_trace_is_mixed() -> None:
    requests = bench.mixed_requests(bench.FULL)
    assert len({(r.width, r.height) for r in requests}) == 3
    assert len({r.sampler for r in requests}) == 4
    assert len({r.steps for r in requests}) == 3
    assert len({r.cfg_scale for r in requests}) > 1


def test_evaluations_are_timed_by_a_difference() -> None:
    assert bench.per_evaluation(lambda steps: 3.0 + 0.5 * steps, bench.FULL) == pytest.approx(0.5)


def test_psnr_tells_near_from_far() -> None:
    image = np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert bench.psnr(image, image) == float("inf")
    assert bench.psnr(image, 255 - image) < 15 < bench.psnr(image, image ^ 1)


def ours(good: bool) -> dict[str, Any]:
    check = {"sampler": "DDIM", "psnr": 50.0, "control": 10.0, "worst": 1, "good": good}
    return {
        "start": {"imports": 1.0, "load": 1.0, "engine": 1.0, "first_picture": 1.0, "whole": 4.0},
        "checks": [check],
        "latency": 0.1,
        "concurrency": {"1": {"images_per_second": 12.0, "p50": 0.1, "worst": 0.2}},
        "ticks": {"2": {"tick": 0.010, "unet": 0.009, "rows": 2.0}},
    }


def test_a_part_that_ran_out_of_time_is_reported_as_far_as_it_came(tmp_path: Path) -> None:
    ledger = bench.Ledger(tmp_path / "ours.json")
    for name, value in ours(good=True).items():
        ledger[name] = value
    results = dict.fromkeys(bench.PARTS) | {"ours": ledger, "diffusers": {"latency": 0.5}}
    report = bench.make_report(results, bench.FULL, ["head"])
    assert "all good" in report
    assert "| unloaded latency, ms | 500 | not run | 100 |" in report
    assert "ours makes 6.00 times as many" in report
    assert "| 2 | 2.0 | 10.00 | 9.00 | 10.0 % |" in report
    assert "| warm | not run |" in report
    if not torch.cuda.is_available():
        assert "| unloaded p50, ms | at most 180, then 120 | not run on CUDA |" in report
    assert (tmp_path / "ours.json").read_text().startswith("{")


def test_figures_of_a_wrong_computation_are_marked() -> None:
    results = dict.fromkeys(bench.PARTS) | {"ours": ours(good=False)}
    assert "WRONG" in bench.make_report(results, bench.FULL, [])
    nothing = bench.make_report(dict.fromkeys(bench.PARTS), bench.FULL, [])
    assert "Correctness: not run" in nothing


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no CUDA")
def test_without_cuda_the_full_benchmark_is_refused() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--narrow" in done.stderr


@pytest.mark.slow
def test_the_narrow_benchmark_runs_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    command = [sys.executable, str(SCRIPT), "--narrow", "--profile", "--out", str(out)]
    subprocess.run(command, check=True, timeout=600)
    report = out.read_text()
    assert "all good" in report
    assert "| warm |" in report
