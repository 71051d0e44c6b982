"""Serve for real and measure it: this server, a plain one, and one that batches equal requests.

.venv/bin/python scripts/bench_serving --mode long      # writes docs/benchmarks/serving.md
.venv/bin/python scripts/bench_serving --mode short
.venv/bin/python scripts/bench_serving --only steps     # the engine's own work, no U-Net
.venv/bin/python scripts/bench_serving --only profile   # what the time is spent on

Each server is a process, the load generator another. Needs the `bench` extra. long takes about 12
minutes on two cores with the embedded model, short about 3.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from pathlib import Path

# Threads that wait must not spin: the load generator needs the cores too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from models.loading.loader import load_bundle
from pipelines.request import CONTRACT_SAMPLERS, Sampler
from scripts.benchmarks.serving.measures import COMPARED, RUN_PLANS, Results, measure
from scripts.benchmarks.serving.plot import plot_latency
from scripts.benchmarks.serving.processes import EXACT, Model, running_servers
from scripts.benchmarks.serving.profiling import profile_serving, profile_steps
from scripts.benchmarks.serving.report import make_report
from scripts.benchmarks.serving.steps import CROWDS, StepCost, measure_steps
from scripts.paths import ROOT
from server.cpus import usable_cpus
from server.settings import Settings

PARTS = ("serving", "steps", "profile")
REPORT = ROOT / "docs" / "benchmarks" / "serving.md"
PLOT = "serving_latency.png"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mode", choices=RUN_PLANS, default="short")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--profile", action="store_true", help="also what the time is spent on")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=usable_cpus().count)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of this server"
    )
    parser.add_argument("--note", default="", help="a sentence for the report's head")
    parser.add_argument(
        "--out", type=Path, help=f"report; long writes {REPORT.relative_to(ROOT)} by itself"
    )
    options = parser.parse_args()
    if options.out is None and options.mode == "long" and options.only is None:
        options.out = REPORT
    for pair in options.set:
        if pair.partition("=")[0] not in Settings.model_fields:
            parser.error(f"--set {pair}: no such setting")
    return options


def say(line: str) -> None:
    print(line, flush=True)


def resolved_model(options: argparse.Namespace) -> Model:
    """What `auto` comes to here, so that every server is told the same and the report says it."""
    bundle = load_bundle(options.model, device=options.device, dtype=options.dtype)
    dtype = str(bundle.dtype).removeprefix("torch.")
    return Model(options.model, str(bundle.device), dtype, options.threads)


def serve_and_measure(model: Model, settings: dict[str, str], mode: str) -> Results:
    with running_servers((*COMPARED, EXACT), model, settings) as servers:
        return measure(servers, RUN_PLANS[mode], say)


def step_costs(model: Model, mode: str) -> dict[int, list[StepCost]]:
    quick = mode == "smoke"
    sizes = (320,) if quick else (320, 512)
    return {
        size: measure_steps(
            model.name,
            model.device,
            model.dtype,
            size=size,
            samplers=(Sampler.K_EULER, Sampler.K_HEUN) if quick else CONTRACT_SAMPLERS,
            crowds=CROWDS,
            steps=20 if quick else 50,
            rounds={"smoke": 1, "short": 1, "long": 3}[mode],
        )
        for size in sizes
    }


def profiles(model: Model, mode: str) -> list[list[str]]:
    requests = {"smoke": 2, "short": 4, "long": 8}[mode]
    kind = (model.name, model.device, model.dtype)
    return [
        profile_serving(*kind, size=320, requests=requests),
        profile_steps(*kind, size=320, requests=8, sampler=Sampler.K_DPMPP_2M),
    ]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    model = resolved_model(options)
    settings = dict(pair.split("=", 1) for pair in options.set)
    wanted = {options.only} if options.only else {"serving", "steps"}
    if options.profile:
        wanted.add("profile")
    results = serve_and_measure(model, settings, options.mode) if "serving" in wanted else None
    steps = step_costs(model, options.mode) if "steps" in wanted else {}
    profiled = profiles(model, options.mode) if "profile" in wanted else []
    plot = None
    if options.out is not None and results is not None:
        plot_latency(results.sizes, options.out.parent / PLOT)
        plot = PLOT
    report = make_report(
        shlex.join([".venv/bin/python", "scripts/bench_serving", *sys.argv[1:]]),
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        model,
        settings,
        results,
        steps,
        profiled,
        plot,
        options.note,
    )
    if options.out is None:
        print(f"\n{report}", end="")
    else:
        options.out.write_text(report)
        say(f"wrote {options.out}")


if __name__ == "__main__":
    main()
