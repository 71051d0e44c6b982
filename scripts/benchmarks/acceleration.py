"""What each acceleration mode gains here: seconds of a step, and of the start, as ratios to `off`.

    scripts/bench_acceleration                      off and compile, the embedded model
    scripts/bench_acceleration --modes off graphs compile --sizes 512x512 --model ...

Every mode's steps run in one process, in turns, and each figure is the median of its turns. The
starts run in processes of their own: the second one finds the folder for compiled code that the
first one left, the third one only the file of torch's artefacts in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from models.acceleration.modes import ROW_BUCKETS, choose_acceleration
from models.device import synchronize
from models.loading.loader import load_bundle
from models.spec import AccelerationMode
from pipelines.engine.config import EngineConfig
from pipelines.engine.model_runner import ModelRunner
from pipelines.engine.policy import make_policy
from pipelines.engine.warmup import dummy_evaluations, make_runner, warm_up
from scripts.paths import python_path
from server.settings.values import split_size

ROUNDS = 7


def started(
    mode: AccelerationMode, options: argparse.Namespace, cache: Path
) -> tuple[ModelRunner, float]:
    """A runner that has warmed up, and the seconds that took without loading the weights."""
    bundle = load_bundle(options.model, device=options.device, dtype=options.dtype)
    acceleration = choose_acceleration(mode, bundle.device)
    config = EngineConfig(
        acceleration=acceleration,
        capture_sizes=[split_size(size) for size in options.sizes],
        compile_folder=cache,
        max_running_requests=max(options.rows),
        row_buckets=tuple(options.rows),
    )
    began = time.perf_counter()
    runner = make_runner(bundle, config, options.rows)
    warm_up(runner, config, make_policy(config, bundle))
    synchronize(bundle.device)
    return runner, time.perf_counter() - began


def step_seconds(runner: ModelRunner, key: int, rows: int) -> float:
    """The fastest of three steps in a row."""
    pool = runner.pools.enter(runner.hot[key])
    evaluations = dummy_evaluations(rows, pool.scratch)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        runner.denoiser.step(pool, evaluations)
        synchronize(runner.bundle.device)
        best = min(best, time.perf_counter() - began)
    runner.pools.leave(runner.hot[key])
    return best


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", nargs="+", type=AccelerationMode, default=["off", "compile"])
    parser.add_argument("--sizes", nargs="+", default=["320x320"])
    parser.add_argument("--rows", nargs="+", type=int, default=[2], choices=ROW_BUCKETS)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    modes = [AccelerationMode(mode) for mode in options.modes]
    if options.start is not None:
        with torch.inference_mode():
            print(started(modes[0], options, options.start)[1])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = {
            mode: [start_seconds(mode, folder, attempt) for attempt in ("first", "second", "third")]
            for mode in modes
        }
        with torch.inference_mode():
            executors = {mode: started(mode, options, folder)[0] for mode in modes}
            for mode, (first, second, third) in starts.items():
                print(f"{mode}: {executors[mode].bundle.facts['acceleration']}; ", end="")
                print(f"warm-up {first:.1f} s, at the second start {second:.1f} s, ", end="")
                print(f"with the file of artefacts alone {third:.1f} s")
            print_steps(executors, options)


def start_seconds(mode: AccelerationMode, cache: Path, attempt: str) -> float:
    """The warm-up of a process of its own, in seconds."""
    arguments = [a for a in sys.argv[1:] if a not in list(AccelerationMode) and a != "--modes"]
    command = [
        sys.executable,
        "-m",
        "scripts.benchmarks.acceleration",
        *arguments,
        "--modes",
        mode,
        "--start",
        str(cache),
    ]
    place = cache / ("alone" if attempt == "third" else "inductor") / mode
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(place),
        "PYTHONPATH": python_path(),
    }
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def print_steps(
    executors: dict[AccelerationMode, ModelRunner], options: argparse.Namespace
) -> None:
    """A line for each size and number of rows, each mode's step as a ratio to the first mode's."""
    first = next(iter(executors))
    print(f"device {executors[first].bundle.device}, {torch.get_num_threads()} threads")
    for key, size in enumerate(options.sizes):
        for rows in options.rows:
            turns = [
                {mode: step_seconds(runner, key, rows) for mode, runner in executors.items()}
                for _ in range(ROUNDS)
            ]
            middle = {m: statistics.median(turn[m] for turn in turns) for m in executors}
            base = middle[first]
            ratios = ", ".join(f"{m} {middle[m] / base:.2f}" for m in executors)
            print(f"{size}, {rows} rows: step of {first} {base * 1e3:.1f} ms; {ratios}")


if __name__ == "__main__":
    main()
