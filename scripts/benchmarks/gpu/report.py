"""The page of a run, made from its results, beside those of the revision before.

What a run did not measure is an empty cell: a run that was cut off makes a page all the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.gpu.correctness import LEAST_PSNR, MOST_ERROR
from scripts.benchmarks.gpu.forwards import FAST, MODULES
from scripts.benchmarks.gpu.kernel_times import KINDS
from scripts.benchmarks.gpu.ledger import DONE, RUNNING
from scripts.benchmarks.gpu.start import PHASES
from scripts.benchmarks.serving.report import table
from scripts.paths import ROOT

BEFORE = ROOT / "docs" / "benchmarks" / "gpu_08d51b2.json"

Run = dict[str, Any]


def get(run: Run, *path: str) -> Any:
    """Return a figure of a run; None where there is none."""
    value: Any = run
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def served(run: Run) -> str:
    """Return the variant of the forwards that requests go through."""
    return str(run.get("served") or (FAST if get(run, "unet", FAST) else MODULES))


def ratio(one: float | None, other: float | None) -> float | None:
    """Return a quotient; None where either is missing or the divisor is 0."""
    return None if one is None or not other else one / other


def outside(step: dict[str, float] | None, rows: int) -> float | None:
    """Return a step's share outside the U-Net; None where the policy split the crowd."""
    if step is None or not math.isclose(step["rows"], rows, rel_tol=0.05):
        return None
    return 1 - step["unet"] / step["step"]


def saturated(run: Run) -> float | None:
    """Return the engine's images a second."""
    rate: float | None = get(run, "engine", "saturated", "rate")
    return rate


def over_http(run: Run) -> float | None:
    """Return the images a second of the most clients that were tried."""
    clients = [name for name in run.get("http", {}) if name.isdigit()]
    rate: float | None = get(run, "http", max(clients, key=int), "rate") if clients else None
    return rate


Target = tuple[str, float, Callable[[Run], float | None], float, str, int]
TARGETS: Sequence[Target] = (
    ("U-Net, 2 rows, ms", 5.8, lambda r: get(r, "unet", served(r), "2", "ms"), 1, "under", 2),
    ("U-Net, 16 rows, ms", 30, lambda r: get(r, "unet", served(r), "16", "ms"), 1, "under", 1),
    (
        "decode, ms", 6.5, lambda r: get(r, "vae", served(r), "decode 1", "captured"),
        1, "under", 1,
    ),
    (
        "encode, ms", 3.7, lambda r: get(r, "vae", served(r), "encode 1", "captured"),
        1, "under", 1,
    ),
    (
        "of a step of 16 rows outside the U-Net, %", 3,
        lambda r: outside(get(r, "engine", "steps", "16"), 16), 100, "at most", 1,
    ),
    ("default request alone, ms", 125, lambda r: get(r, "engine", "latency"), 1e3, "at most", 0),
    ("images a second, saturated", 11.5, saturated, 1, "at least", 2),
    (
        "times diffusers one at a time", 4,
        lambda r: ratio(saturated(r), get(r, "diffusers", "rate")), 1, "at least", 1,
    ),
    (
        "of the engine's images a second over HTTP, %", 90,
        lambda r: ratio(over_http(r), saturated(r)), 100, "at least", 0,
    ),
    (
        "start from cold, s", 20, lambda r: get(r, "start", "nothing compiled", "whole"),
        1, "under", 0,
    ),
    (
        "of it warm-up, s", 5, lambda r: get(r, "start", "nothing compiled", "warm-up"),
        1, "under", 1,
    ),
)  # fmt: skip
"""What, the target, its figure in a run, what that is multiplied with to be shown, digits."""


def cell(value: float | None, digits: int = 2, scale: float = 1.0) -> str:
    """Return a figure for a table; empty for none."""
    return "" if value is None else f"{value * scale:.{digits}f}"


def make_page(now: Run | None, before: Run | None) -> str:
    """Return the page: targets first, then everything that was measured, run by run."""
    lines = ["# On a GPU", ""]
    if now is None:
        lines += [
            "**The fast forwards (`models/acceleration/fast_forwards.py`) have not run on a card "
            "yet.** What is expected of them is counted, not measured ([kernels.md](kernels.md)). "
            "What stands here was measured before them.",
            "",
        ]
    lines += [
        "    .venv/bin/python scripts/bench_gpu      # on a card: measures all of it anew",
        "",
        "writes `gpu.json` as it measures, in under 4 minutes, and this page from it.",
        "",
        *_target_lines(now, before),
    ]
    if now is not None:
        lines += run_lines("Measured now", now)
    if before is not None:
        lines += run_lines("Before the fast forwards", before)
    return "\n".join(lines).rstrip() + "\n"


def _target_lines(now: Run | None, before: Run | None) -> list[str]:
    rows = []
    for words, target, figure, scale, kind, digits in TARGETS:
        values = [None if run is None else figure(run) for run in (before, now)]
        shown = [cell(value, digits, scale) for value in values]
        met = ""
        if values[1] is not None:
            good = (
                values[1] * scale >= target if kind == "at least" else values[1] * scale <= target
            )
            met = "yes" if good else "**no**"
        rows.append([words, f"{kind} {target:g}", *shown, met])
    head = ("", "target on an H100 or H200", "before", "now", "met")
    lines = ["## Targets", "", *table(head, rows)]
    if now is not None and not get(now, "environment", "cuda"):
        lines += ["**Not run on CUDA: no figure here is to be held against a target.**", ""]
    return lines


def run_lines(title: str, run: Run) -> list[str]:
    """Return the sections of one run."""
    where = run.get("environment", {})
    lines = [f"## {title}: {where.get('device', '')}, {where.get('date', '')}", ""]
    card = f", CUDA {where['cuda']}, cuDNN {where.get('cudnn', '')}" if where.get("cuda") else ""
    scale = run.get("scale", {})
    size = scale.get("size", 512)
    model = "a narrow model" if scale.get("narrow") else "Stable Diffusion 1.5 of full size"
    lines += [
        *([f"    {where['command']}", ""] if where.get("command") else []),
        f"Revision {where.get('revision', '')}; torch {where.get('torch', '')}{card}, "
        f"{where.get('dtype', '')}; {model} with random weights, {size} x {size}. A forward's time "
        "is that of a graph's replay between two of the device's events, the median.",
        "",
    ]
    lines += [f"- {note}" for note in run.get("notes", [])]
    lines += [""] if run.get("notes") else []
    sections: Iterable[Callable[[Run], list[str]]] = (
        _part_lines, _limit_lines, _correctness_lines, _unet_lines, _vae_lines, _request_lines,
        _serving_lines, _start_lines, _attention_lines, _kernel_lines,
    )  # fmt: skip
    for section in sections:
        lines += section(run)
    return lines


def _part_lines(run: Run) -> list[str]:
    parts: Run = get(run, "parts") or {}
    left = []
    for name in get(run, "wanted") or parts:
        status = get(parts, name, "status") or "not begun"
        if status != DONE:
            left.append(f"{name}: {'cut off' if status == RUNNING else status}")
    return [f"**Not all of it was measured.** {'; '.join(left)}.", ""] if left else []


def _limit_lines(run: Run) -> list[str]:
    product, copy = get(run, "device", "product_tflops"), get(run, "device", "copy_gbs")
    if product is None:
        return []
    words = f"The card's limits: {product:.0f} TFLOP/s in one product of large matrices"
    words += "" if copy is None else f", {copy:.0f} GB/s read and written by one large copy"
    flops = [get(run, "flops", name) for name in ("unet_row", "decode", "encode")]
    if all(flops):
        row, decode, encode = (1e-12 * flop for flop in flops)
        words += f". A U-Net row is {row:.3f} TFLOP, a decode {decode:.2f}, an encode {encode:.2f}"
    return [f"{words}. *Share* is of those TFLOP/s.", ""]


def _correctness_lines(run: Run) -> list[str]:
    rows = [
        [name, cell(one["psnr"], 1), cell(one["another"], 1), "yes" if one["good"] else "**WRONG**"]
        for name, one in run.get("correctness", {}).items()
    ]
    if not rows:
        return []
    words = (
        "In float32, against diffusers' pictures of the same requests, the worst of them; right is "
        f"{LEAST_PSNR:.0f} dB and more. In half precision pictures of random weights prove "
        f"nothing: there one forward counts, whose error may be {MOST_ERROR:.0e} (below)."
    )
    head = ("mode", "PSNR, dB", "another picture's", "right")
    return ["### Right", "", words, "", *table(head, rows)]


def _unet_lines(run: Run) -> list[str]:
    product, flops = get(run, "device", "product_tflops"), get(run, "flops", "unet_row")
    rows = []
    for variant, by_rows in run.get("unet", {}).items():
        for count, one in by_rows.items() if isinstance(by_rows, dict) else ():
            share = None
            if product and flops and one.get("ms"):
                share = flops * int(count) / one["ms"] / 1e9 / product
            kinds = [cell(get(one, "kernels", "ms", kind), 1) for kind in KINDS]
            each = cell(one["ms"] / int(count)) if one.get("ms") else ""
            error = f"{one['error']:.1e}" if "error" in one else ""
            rows.append(
                [variant, count, cell(one.get("ms")), each, cell(share, 0, 100), error, *kinds]
            )
    if not rows:
        return []
    forwards = get(run, "unet", "forwards")
    said = [f"{forwards}.", ""] if forwards else []
    head = ("", "rows", "ms", "ms a row", "share, %", "error", *(f"{kind}, ms" for kind in KINDS))
    words = (
        "*Error*: relative, against float32. Kinds of kernels: launched one by one, by profiler."
    )
    return ["### U-Net, one forward", "", words, "", *said, *table(head, rows)]


def _vae_lines(run: Run) -> list[str]:
    product = get(run, "device", "product_tflops")
    every = [one for passes in run.get("vae", {}).values() for one in passes.values()]
    profiled = KINDS if any("kernels" in one for one in every) else ()
    rows = []
    for variant, passes in run.get("vae", {}).items():
        for name, one in passes.items():
            kind, pictures = name.split()
            flops, ms = get(run, "flops", kind), one.get("captured")
            share = None
            if product and flops and ms:
                share = flops * int(pictures) / ms / 1e9 / product
            error = f"{one['error']:.1e}" if "error" in one else ""
            kinds = [cell(get(one, "kernels", "ms", each), 1) for each in profiled]
            times = [cell(one.get("eager")), cell(ms), cell(ms and ms / int(pictures))]
            rows.append([variant, kind, pictures, *times, cell(share, 0, 100), error, *kinds])
    if not rows:
        return []
    head = ("", "", "pictures", "eager, ms", "captured, ms", "a picture", "share, %", "error")
    return ["### VAE", "", *table((*head, *(f"{kind}, ms" for kind in profiled)), rows)]


def _request_lines(run: Run) -> list[str]:
    engine = run.get("engine", {})
    if not engine:
        return []
    evaluations = get(run, "scale", "evaluations") or 19
    lines = [f"### The default request through the engine ({evaluations} evaluations)", ""]
    words = [f"Accelerated: {engine['accelerated']}. Forwards: {engine.get('forwards')}."]
    if "latency" in engine:
        stages = ", ".join(f"{n} {1e3 * s:.0f}" for n, s in engine.get("stages", {}).items())
        words += [f"Alone: p50 {1e3 * engine['latency']:.0f} ms ({stages})."]
    if "text" in engine:
        texts = ", ".join(f"{ms:.1f} {name}" for name, ms in engine["text"].items())
        words += [f"Prompt and negative prompt, ms: {texts}."]
    if "saturated" in engine:
        one, count = engine["saturated"], get(run, "scale", "outstanding") or 16
        words += [f"With {count} outstanding: {one['rate']:.2f} images/s"]
        words[-1] += f", p50 {1e3 * one['p50']:.0f} ms." if "p50" in one else "."
    if "latency" in run.get("diffusers", {}):
        words += [f"diffusers as a user writes it: {1e3 * run['diffusers']['latency']:.0f} ms."]
    if "peak_memory" in engine:
        words += [f"Peak memory {engine['peak_memory'] / 2**20:.0f} MiB."]
    rows = []
    for count, step in engine.get("steps", {}).items():
        share = outside(step, int(count))
        figures = [cell(step["rows"], 1), cell(step["step"]), cell(step["unet"])]
        rows.append([count, *figures, cell(share, 1, 100)])
    head = ("rows", "rows in a step", "step, ms", "U-Net alone, ms", "outside, %")
    steps = table(head, rows) if rows else []
    words = [word for word in words if "None" not in word]
    return [*lines, " ".join(words), "", *steps]


def _serving_lines(run: Run) -> list[str]:
    http = run.get("http", {})
    rows = [
        [
            clients, cell(one.get("rate")), cell(one.get("p50"), 0, 1e3),
            cell(one.get("p95"), 0, 1e3), cell(one.get("missed"), 0),
        ]
        for clients, one in http.items()
        if clients.isdigit()
    ]  # fmt: skip
    if not rows:
        return []
    ready = f"A server process, ready after {http['ready']:.0f} s." if "ready" in http else ""
    head = ("clients", "images a second", "p50, ms", "p95, ms", "missed")
    return ["### Over HTTP", "", *([ready, ""] if ready else []), *table(head, rows)]


def _start_lines(run: Run) -> list[str]:
    rows = [
        [name, *(cell(one.get(phase), 1) for phase in PHASES)]
        for name, one in run.get("start", {}).items()
    ]
    return ["### Start, in seconds", "", *table(("", *PHASES), rows)] if rows else []


def _attention_lines(run: Run) -> list[str]:
    shapes = run.get("attention", {})
    if not shapes:
        return []
    kernels = list(dict.fromkeys(name for times in shapes.values() for name in times))
    rows = [[shape, *(str(times.get(k, "")) for k in kernels)] for shape, times in shapes.items()]
    return ["### Attention, ms at 2 and 16 rows", "", *table(("", *kernels), rows)]


def _kernel_lines(run: Run) -> list[str]:
    by_rows = get(run, "unet", served(run)) or {}
    largest = [rows for rows, one in by_rows.items() if get(one, "kernels", "most")]
    if not largest:
        return []
    kernels = by_rows[largest[-1]]["kernels"]
    lines = [f"{ms:9.3f} ms x{count:4d}  {name}" for name, ms, count in kernels["most"]]
    title = f"### The kernels of {largest[-1]} rows ({kernels['launches']} launches)"
    return [title, "", "```", *lines, "```", ""]


def good(results: Path, parts: Sequence[str]) -> bool:
    """Return whether all that was to show that the computation is right did so."""
    run: Run = json.loads(results.read_text())
    if any(get(run, "parts", part, "status") != DONE for part in parts):
        return False
    pictures = run.get("correctness", {}).values()
    if not all(one["good"] for one in pictures):
        return False
    for kind in ("unet", "vae"):
        modules, fast = (run.get(kind, {}).get(variant, {}) for variant in (MODULES, FAST))
        for name, one in fast.items():
            # An autoencoder's own error in half precision may be the larger one.
            allowed = max(MOST_ERROR, 1.2 * (get(modules, name, "error") or 0.0))
            if one.get("error", 0.0) > allowed:
                return False
    return True


def write_page(folder: Path) -> None:
    """Make ``gpu.md`` in a folder from its ``gpu.json``, if there is one."""
    results = folder / "gpu.json"
    now = json.loads(results.read_text()) if results.exists() else None
    before = json.loads(BEFORE.read_text()) if BEFORE.exists() else None
    (folder / "gpu.md").write_text(make_page(now, before))
