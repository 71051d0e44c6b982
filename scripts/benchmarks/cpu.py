"""Compare what makes images on this CPU, in one run: ours, diffusers, stable-diffusion.cpp.

.venv/bin/python scripts/bench_cpu                       # the embedded model, 320 x 320
.venv/bin/python scripts/bench_cpu --full-size           # Stable Diffusion 1.5 of random weights
.venv/bin/python scripts/bench_cpu --full-size --sdcpp /path/to/its/venv/bin/python

stable-diffusion.cpp comes as a Python package, built for this machine in an environment of its own:

    python3 -m venv sdcpp
    CMAKE_ARGS=-DGGML_NATIVE=ON sdcpp/bin/pip install stable-diffusion-cpp-python

All take turns, every image has the same number of U-Net evaluations, and ratios are to ours alone.
Beside them stands a ceiling, one large product and one large convolution: how much of the CPU's
arithmetic an image uses. Full size takes 12 GB of memory, and minutes.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# On a machine that does other work too, threads that spin at a barrier cost most of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.bundle import ModelBundle
from models.cpu import cpu_name, read_cpuinfo
from models.loading.checkpoint import SD15_FOLDER
from models.loading.loader import load_bundle
from models.noise_schedule import NoiseSchedule
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import GenerationRequest, Sampler
from pipelines.samplers.schedules import make_scheduler
from scripts.benchmarks import sdcpp_worker
from scripts.benchmarks.against_diffusers import input_picture
from scripts.checkpoints.random_checkpoint import write_checkpoint
from server.cpus import set_tensor_threads, usable_cpus

ALONE, CROWD = "ours, alone", "ours, four at once"
_CROWD = 4

Run = Callable[[], float]
"""Make an image; return the seconds it took."""


@dataclass(frozen=True)
class Ceiling:
    """GFLOP/s that one large product and one large convolution reach here."""

    dtype: str
    product: float
    convolution: float


def timed(run: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def ceiling(dtype: torch.dtype, rounds: int = 3) -> Ceiling:
    """Measure the best of some rounds: a product of 4096 cubed, a convolution as a U-Net's."""
    n, rows, channels, side = 4096, 2, 320, 64
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    x = torch.randn(rows, channels, side, side).to(dtype, memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        product = min(timed(lambda: a @ b) for _ in range(rounds + 1))
        convolution = min(
            timed(lambda: torch.nn.functional.conv2d(x, w, padding=1)) for _ in range(3 * rounds)
        )
    flops = 2 * rows * side * side * channels * channels * 9
    name = str(dtype).removeprefix("torch.")
    return Ceiling(name, 2 * n**3 / product / 1e9, flops / convolution / 1e9)


@contextmanager
def ours(bundle: ModelBundle, size: int, steps: int) -> Iterator[dict[str, Run]]:
    """Yield the engine's two: an image alone, and the share of one among four."""
    engine = Engine(bundle, EngineConfig(warm_up=False))
    engine.start()
    image = np.asarray(input_picture(size))

    def make(count: int) -> None:
        asked = [
            GenerationRequest(
                image,
                "a blue circle",
                "blurry",
                image_strength=0.0,
                cfg_scale=7.0,
                sampler=Sampler.K_EULER,
                steps=steps,
                seed=seed,
            )
            for seed in range(1, count + 1)
        ]
        for handle in [engine.submit(request) for request in asked]:
            handle.wait()

    try:
        yield {
            ALONE: lambda: timed(lambda: make(1)),
            CROWD: lambda: timed(lambda: make(_CROWD)) / _CROWD,
        }
    finally:
        engine.drain()


def pipeline(bundle: ModelBundle, size: int, steps: int) -> Callable[[], Image.Image]:
    """Return diffusers' pipeline over the bundle's parts, as a call that makes one image."""
    schedule = NoiseSchedule.from_config(bundle.scheduler_config)
    parts = (bundle.vae, bundle.text_encoder, bundle.tokenizer, bundle.unet)
    pipe: Any = StableDiffusionImg2ImgPipeline(
        *parts, make_scheduler(Sampler.K_EULER, schedule), None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)

    def make() -> Image.Image:
        made: Image.Image = pipe(
            prompt="a blue circle",
            negative_prompt="blurry",
            image=input_picture(size),
            strength=1.0,
            num_inference_steps=steps,
            guidance_scale=7.0,
            generator=torch.Generator().manual_seed(1),
        ).images[0]
        return made

    return make


def count_flops(make: Callable[[], object]) -> float:
    """Return the arithmetic of one call: products, convolutions, attention as products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        make()
    return float(counter.get_total_flops())


@contextmanager
def stable_diffusion_cpp(
    python: str, checkpoint: Path, size: int, steps: int, threads: int
) -> Iterator[Run]:
    """Yield stable-diffusion.cpp, in a process of its own. Raises RuntimeError if it ends."""
    command = [python, str(Path(sdcpp_worker.__file__)), str(checkpoint)]
    command += [str(number) for number in (size, steps, threads)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        to, answers = process.stdin, process.stdout
        if to is None or answers is None:
            raise RuntimeError("no pipes to stable-diffusion.cpp")

        def answer(word: str) -> str:
            for line in answers:  # the library may print lines of its own
                if line.startswith(word):
                    return line.removeprefix(word).strip()
            raise RuntimeError("stable-diffusion.cpp ended, see above")

        def run() -> float:
            to.write("\n")
            to.flush()
            return float(answer("seconds"))

        answer("ready")
        yield run


def missing_cpp(python: str | None, full_size: bool) -> str:
    """Return why stable-diffusion.cpp is left out, or nothing."""
    if not full_size:
        return "it knows no model of the embedded one's shape"
    if python is None:
        return "name its environment's Python with --sdcpp"
    if not Path(python).exists():
        return f"there is no {python}"
    found = subprocess.run(
        [python, "-c", "import stable_diffusion_cpp"], capture_output=True, check=False
    )
    return "" if found.returncode == 0 else f"{python} has no stable_diffusion_cpp"


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return the seconds an image of each in every round, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            took = run()
            print(f"{name}: {took:.3f} s{' (first)' if turn == 0 else ''}", flush=True)
            if turn:
                seconds[name].append(took)
    return seconds


def report(
    head: Sequence[str],
    seconds: Mapping[str, Sequence[float]],
    flops: float,
    ceilings: Sequence[Ceiling],
) -> str:
    """Return the Markdown of a run."""
    base = statistics.median(seconds[ALONE])
    lines = ["# The CPU", "", *head, ""]
    lines += ["| | s an image, median (least to most) | ratio to ours alone | GFLOP/s |"]
    lines += ["|---|---|---|---|"]
    for name, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{middle:.3f} ({min(times):.3f} to {max(times):.3f})"
        lines.append(f"| {name} | {spread} | {middle / base:.2f} | {flops / middle / 1e9:.0f} |")
    lines += ["", f"An image is {flops / 1e12:.3f} TFLOP. The ceiling, GFLOP/s:", ""]
    lines += ["| | one product, 4096 cubed | one convolution, 3 x 3, 320 channels, 64 x 64 |"]
    lines += ["|---|---|---|"]
    lines += [f"| {c.dtype} | {c.product:.0f} | {c.convolution:.0f} |" for c in ceilings]
    return "\n".join(lines) + "\n"


def run_all(options: argparse.Namespace, folder: Path) -> str:
    """Measure everything that is here, and return the report."""
    threads = set_tensor_threads(options.threads)
    size, steps = options.size, options.steps
    model, checkpoint = "embedded", folder / "random.safetensors"
    if options.full_size:
        write_checkpoint(checkpoint, SD15_FOLDER)
        model = str(checkpoint)
    mine = load_bundle(model, device="cpu", dtype=options.dtype)
    name = str(mine.dtype).removeprefix("torch.")
    plain = {"float32": load_bundle(model, device="cpu", dtype="float32"), name: mine}
    skipped = missing_cpp(options.sdcpp, options.full_size)
    with ExitStack() as stack:
        runs: dict[str, Run] = dict(stack.enter_context(ours(mine, size, steps)))
        pipelines = {kind: pipeline(bundle, size, steps) for kind, bundle in plain.items()}
        for kind, make in pipelines.items():
            runs[f"diffusers, {kind}"] = lambda make=make: timed(make)  # type: ignore[misc]
        if skipped:
            print(f"stable-diffusion.cpp is left out: {skipped}", flush=True)
        else:
            cpp = stable_diffusion_cpp(options.sdcpp, checkpoint, size, steps, threads)
            runs["stable-diffusion.cpp, f16"] = stack.enter_context(cpp)
        flops = count_flops(pipelines[name])
        seconds = measure(runs, options.rounds)
    ceilings = [ceiling(bundle.dtype) for bundle in plain.values()]
    command = shlex.join([".venv/bin/python", "scripts/bench_cpu", *sys.argv[1:]])
    usable = usable_cpus()
    about = (
        f"{datetime.datetime.now(datetime.UTC).date().isoformat()}. {cpu_name(read_cpuinfo())}, "
        f"{platform.machine()}, {threads} threads on {usable.count} CPUs. "
        f"{'Stable Diffusion 1.5 of random weights' if options.full_size else 'The embedded model'}"
        f", {size} x {size}, {steps} Euler steps with guidance, {options.rounds} rounds in turns; "
        f"ours in {mine.facts['dtype']}. torch {torch.__version__}, diffusers "
        f"{diffusers.__version__}. Load average when it began: {options.load:.1f}."
    )
    left_out = [f"stable-diffusion.cpp is left out: {skipped}."] if skipped else []
    return report([f"    {command}", "", about, *left_out], seconds, flops, ceilings)


def main() -> None:
    """Print the report, or write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--size", type=int, help="320; at full size 256")
    parser.add_argument("--steps", type=int, help="20; at full size 4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as the server would")
    parser.add_argument("--dtype", default="auto", help="of ours")
    parser.add_argument("--sdcpp", help="Python of the environment with stable-diffusion.cpp")
    parser.add_argument("--out", type=Path, help="file for the report")
    options = parser.parse_args()
    options.size = options.size or (256 if options.full_size else 320)
    options.steps = options.steps or (4 if options.full_size else 20)
    options.load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        text = run_all(options, Path(folder))
    print(f"\n{text}", end="")
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
