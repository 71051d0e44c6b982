"""The GPU benchmark: what can be checked of it without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.samplers.programs import make_program
from scripts.benchmarks.gpu import run
from scripts.benchmarks.gpu.correctness import compare, psnr
from scripts.benchmarks.gpu.engine import running_engine
from scripts.benchmarks.gpu.forwards import FAST, MODULES, unet_flops, vae_flops
from scripts.benchmarks.gpu.http import default_calls
from scripts.benchmarks.gpu.kernel_times import KINDS, kernel_times, kind_of
from scripts.benchmarks.gpu.ledger import SKIPPED, Ledger
from scripts.benchmarks.gpu.model import make_parts
from scripts.benchmarks.gpu.plan import FULL, NARROW, PARTS, SECONDS, ask, checked_requests
from scripts.benchmarks.gpu.report import BEFORE, TARGETS, good, make_page, outside
from scripts.benchmarks.gpu.start import measure_start
from scripts.benchmarks.serving.load import Plan
from tests.tiny_model import tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_gpu"


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.slow("benchmarks")
def test_the_full_model_has_the_size_of_stable_diffusion_1_5() -> None:
    with torch.device("meta"):
        parts = make_parts(narrow=False)
    assert parameters(parts["unet"]) == 859_520_964
    assert parameters(parts["vae"]) == 83_653_863
    assert parameters(parts["text_encoder"]) == 123_060_480


@pytest.mark.slow("benchmarks")
def test_the_arithmetic_of_the_full_model_is_what_was_counted_on_a_card() -> None:
    assert unet_flops(False, FULL) == pytest.approx(0.803e12, rel=0.01)
    counted = vae_flops(False, FULL)
    assert counted["decode"] == pytest.approx(2.51e12, rel=0.01)
    assert counted["encode"] == pytest.approx(1.12e12, rel=0.01)


def test_the_default_request_has_nineteen_evaluations() -> None:
    for scale in (FULL, NARROW):
        request = ask(scale)
        table = make_program(request.sampler, request.steps, request.image_strength)
        assert len(table) == scale.evaluations
    assert FULL.evaluations == 19
    assert [call.fields["steps"] for call in default_calls(FULL, 2, 1)] == ["30", "30"]


def test_checked_requests_are_different_ones() -> None:
    requests = checked_requests(FULL)
    assert len({r.sampler for r in requests}) == len({r.prompt for r in requests}) == 4


@pytest.mark.parametrize(
    "mode", [pytest.param("off", marks=pytest.mark.slow("benchmarks")), "graphs"]
)
def test_a_mode_reaches_the_engine(tiny_folder: Path, mode: str) -> None:
    # A bundle of its own: a mode changes it.
    bundle = tiny_bundle(tiny_folder)
    with running_engine(bundle, mode, NARROW) as (engine, seconds):
        assert engine.config.acceleration.asked == mode
        assert set(seconds) == {"acceleration", "warm-up"}
        # Where there are no graphs it has their forwards all the same.
        assert (bundle.fast is not None and bundle.fast.unet is not None) is (mode == "graphs")


def test_psnr_tells_near_from_far() -> None:
    image = np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert psnr(image, image) == 99.0
    assert psnr(image, 255 - image) < 15 < psnr(image, image ^ 1)
    other = 255 - image
    assert compare([image, other], [image, other])["good"]
    assert not compare([other], [image, other])["good"]
    assert not compare([image, image ^ 4], [image, image])["good"]  # one of them is not exact


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob", "attention"),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm80", "attention"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_bias_TNT", "matrix product"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x32", "matrix product"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__half>", "layout copies"),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            "lay",
        ),
        ("gn_partial", "norms"),
        ("layer_norm", "norms"),
        ("void at::native::RowwiseMomentsCUDAKernel<c10::Half, float>", "norms"),
        ("bias_residual", "elementwise"),
        ("geglu", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, silu>", "elementwise"),
    ],
)
def test_a_kernel_s_kind_is_told_by_its_name(kernel: str, kind: str) -> None:
    assert kind_of(kernel).startswith(kind)


def test_kernel_times_are_of_one_run() -> None:
    a = torch.randn(64, 64)
    found = kernel_times(lambda: torch.nn.functional.layer_norm(a @ a, (64,)))
    assert set(found.ms) == set(KINDS)
    assert found.ms["norms"] > 0
    assert found.ms["matrix product"] > 0
    assert all(count == 1 for name, _, count in found.most if name == "aten::mm")


def test_what_does_not_fit_into_the_time_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    ledger = Ledger(file, until=time.time() + 100, say=lambda line: None)
    ledger.run("short", lambda: ledger.put(1.5, "short", "figure"), 10)
    ledger.run("long", lambda: pytest.fail("was run"), 1000)

    def fails() -> None:
        raise ValueError("no such thing\nand more")

    ledger.run("wrong", fails, 0)
    kept = json.loads(file.read_text())
    assert kept["short"] == {"figure": 1.5}
    statuses = {part: of["status"] for part, of in kept["parts"].items()}
    assert statuses == {"short": "done", "long": SKIPPED, "wrong": "failed: no such thing"}

    def cut() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.run("cut", cut, 0)
    assert ledger.results["parts"]["cut"]["status"] == "cut off"
    kept = json.loads(file.read_text())
    # Another process goes on where this one was.
    assert Ledger(file).results == kept


def test_starting_is_measured_whenever_there_was_time_to_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(time, "time", lambda: now + SECONDS["start"])
        return subprocess.CompletedProcess((), 0, stdout='{"whole": 9.0}\n')

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(subprocess, "run", start)
    ledger = Ledger(tmp_path / "results.json", now + SECONDS["start"] + 1, lambda line: None)
    work = partial(measure_start, tmp_path, tmp_path, FULL, ledger)
    ledger.run("start", work, SECONDS["start"])
    assert ledger.results["start"] == {"nothing compiled": {"whole": 9.0}}


def test_a_broken_device_ends_the_process_and_not_the_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results.json", say=lambda line: None)

    def breaks() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError):
        ledger.run("unet", breaks, 0)
    assert ledger.results["parts"]["unet"]["status"].startswith("failed: CUDA error")


def test_parts_that_a_process_did_not_live_to_do_get_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked = tmp_path / "results.json", []

    class Process:
        """The first dies in its second part, the second does what is left."""

        def __init__(self, command: list[str], **options: Any) -> None:
            parts = command[7:]
            asked.append(parts)
            ledger = Ledger(file, say=lambda line: None)
            for part in parts:
                if len(asked) == 1 and part == parts[1]:
                    ledger.put({"status": "running", "seconds": 0.0}, "parts", part)
                    return
                ledger.run(part, lambda: None, 0)

        def wait(self, seconds: float = 0.0) -> int:
            return 1

        def poll(self) -> int:
            return 1

    monkeypatch.setattr(run.subprocess, "Popen", Process)
    run._measure(file, ["device", "unet", "vae"], True, time.time() + 10, tmp_path)
    assert asked == [["device", "unet", "vae"], ["vae"]]
    statuses = [of["status"] for of in json.loads(file.read_text())["parts"].values()]
    assert statuses == ["done", "its process ended", "done"]


def test_a_run_that_is_cut_off_makes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gpu.json"

    def cut(results: Path, *_: Any) -> None:
        Ledger(results).put({"2": {"ms": 5.5}}, "unet", FAST)
        run._end(15, None)

    monkeypatch.setattr(run, "_measure", cut)
    made = []
    run.run_all(
        file,
        PARTS,
        narrow=True,
        minutes=1,
        command="bench",
        make_page=lambda: made.append(make_page(json.loads(file.read_text()), None)),
    )
    assert "| U-Net, 2 rows, ms | under 5.8 |  | 5.50 | yes |" in made[-1].splitlines()


def test_every_part_has_its_time_and_all_of_them_fit() -> None:
    assert set(SECONDS) == set(PARTS)
    assert sum(SECONDS.values()) <= 3.9 * 60


def a_run(error: float = 1e-3, psnr: float = 80.0) -> dict[str, Any]:
    """Results as a run on a card would leave them."""
    parts = {part: {"status": "done", "seconds": 1.0} for part in PARTS}
    kernels = {"ms": dict.fromkeys(KINDS, 1.0), "launches": 300, "most": [["gn_apply", 1.0, 60]]}
    shown = {"psnr": psnr, "another": 12.0, "good": psnr >= 60}
    return {
        "environment": {"device": "a card", "cuda": "13.0", "date": "today", "command": "bench"},
        "parts": parts,
        "device": {"product_tflops": 800.0, "copy_gbs": 4000.0},
        "flops": {"unet_row": 0.8e12, "decode": 2.5e12, "encode": 1.1e12},
        "correctness": {"graphs, alone": shown},
        "unet": {
            MODULES: {"2": {"ms": 10.0}},
            FAST: {
                "2": {"ms": 5.0, "error": error},
                "16": {"ms": 32.0, "error": error, "kernels": kernels},
            },
            "forwards": "U-Net and VAE by kernels of our own",
        },
        "vae": {FAST: {"decode 1": {"eager": 9.0, "captured": 6.0}}},
        "engine": {
            "accelerated": "CUDA graphs",
            "forwards": "U-Net and VAE by kernels of our own",
            "latency": 0.12,
            "stages": {"denoise": 0.1},
            "text": {"as they come": 8.04, "captured": 2.0},
            "saturated": {"rate": 12.0, "p50": 1.3, "worst": 1.5},
            "steps": {"16": {"step": 32.5, "unet": 32.0, "rows": 16.0}},
        },
        "diffusers": {"latency": 0.5, "rate": 2.0},
        "http": {"ready": 15.0, "16": {"rate": 11.4, "p50": 1.4, "p95": 1.5, "missed": 0}},
        "start": {"nothing compiled": {"whole": 19.0, "warm-up": 4.0}},
    }


def test_the_page_holds_figures_against_targets_and_the_revision_before() -> None:
    before = json.loads(BEFORE.read_text())
    lines = make_page(a_run(), before).splitlines()
    assert "| U-Net, 2 rows, ms | under 5.8 | 10.60 | 5.00 | yes |" in lines
    assert "| U-Net, 16 rows, ms | under 30 | 57.4 | 32.0 | **no** |" in lines
    assert "| images a second, saturated | at least 11.5 | 5.26 | 12.00 | yes |" in lines
    assert "| times diffusers one at a time | at least 4 |  | 6.0 | yes |" in lines
    words = "of the engine's images a second over HTTP, %"
    assert f"| {words} | at least 90 | 105 | 95 | yes |" in lines
    assert "| of a step of 16 rows outside the U-Net, % | at most 3 |  | 1.5 | yes |" in lines
    # 2 rows x 0.8 TFLOP in 5 ms are 320 of 800 TFLOP/s.
    assert any(line.startswith(f"| {FAST} | 2 | 5.00 | 2.50 | 40 | 1.0e-03 |") for line in lines)
    assert any(
        "(denoise 100). Prompt and negative prompt, ms: 8.0 as they come, 2.0 captured." in line
        for line in lines
    )
    assert not any(
        "Not all of it was measured" in line or "Not run on CUDA" in line for line in lines
    )


def test_a_page_of_nothing_measured_says_so() -> None:
    assert "have not run on a card yet" in make_page(None, json.loads(BEFORE.read_text()))
    some: dict[str, Any] = {
        "environment": {"cuda": "", "device": "a CPU"},
        "wanted": ["device", "unet", "http", "start"],
        "parts": {
            "device": {"status": "done"},
            "unet": {"status": "running"},
            "http": {"status": SKIPPED},
        },
    }
    page = make_page(some, None)
    left = f"unet: cut off; http: {SKIPPED}; start: not begun"
    assert f"**Not all of it was measured.** {left}." in page
    assert "Not run on CUDA" in page
    assert len([line for line in page.splitlines() if line.endswith("|  |  |  |")]) == len(TARGETS)


def test_a_crowd_that_was_split_has_no_share_outside() -> None:
    assert outside({"step": 10.0, "unet": 9.0, "rows": 8.0}, 16) is None


def test_figures_of_a_wrong_computation_are_marked(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    for result, right in ((a_run(), True), (a_run(error=3e-3), False), (a_run(psnr=30), False)):
        file.write_text(json.dumps(result))
        assert good(file, PARTS) is right
    assert "**WRONG**" in make_page(a_run(psnr=30), None)
    unfinished = a_run()
    unfinished["parts"]["engine"]["status"] = SKIPPED
    file.write_text(json.dumps(unfinished))
    assert not good(file, PARTS)
    assert good(file, ["unet"])


def test_the_page_that_is_kept_is_the_one_of_the_results_that_are_kept() -> None:
    pages = BEFORE.parent
    results = pages / "gpu.json"
    now = json.loads(results.read_text()) if results.exists() else None
    assert (pages / "gpu.md").read_text() == make_page(now, json.loads(BEFORE.read_text()))
    # A page of a real card or none.
    assert now is None or now["environment"]["cuda"]


def test_a_plan_of_clients_survives_its_way_to_the_load_generator() -> None:
    assert Plan.from_json(Plan("http://127.0.0.1", [], clients=16).to_json()).clients == 16


def run_script(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.mark.slow("benchmarks")
@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no CUDA")
def test_without_cuda_the_full_benchmark_is_refused() -> None:
    done = run_script()
    assert done.returncode == 2
    assert "--narrow" in done.stderr


@pytest.mark.slow("benchmarks")
def test_the_narrow_benchmark_runs_from_end_to_end(tmp_path: Path) -> None:
    done = run_script("--narrow", "--minutes", "12", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {part: of["status"] for part, of in results["parts"].items()} == dict.fromkeys(
        PARTS, "done"
    )
    assert set(results["http"]) == {"ready", "1", str(NARROW.outstanding)}
    assert results["http"]["1"]["missed"] == 0
    assert (tmp_path / "gpu.md").read_text() in done.stdout
