"""The serving benchmark: fair baselines, an open-loop load generator, honest figures."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from models.bundle import ModelBundle
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import Pixels, Sampler
from pipelines.samplers.schedules import denoising_steps
from scripts.benchmarks.serving import traces
from scripts.benchmarks.serving.baselines import batching_server, plain_server
from scripts.benchmarks.serving.load import PATH, Plan, Planned, Record, offer, percentile
from scripts.benchmarks.serving.measures import (
    Health,
    Point,
    Results,
    Saturation,
    SizePlan,
    SizeResult,
)
from scripts.benchmarks.serving.plot import plot_latency
from scripts.benchmarks.serving.processes import BATCHING, OURS, PLAIN, Model
from scripts.benchmarks.serving.profiling import as_request, profile_steps
from scripts.benchmarks.serving.report import make_report
from scripts.benchmarks.serving.steps import StepCost, measure_steps
from scripts.paths import ROOT

SIDE = 128
"""Of pictures that are made here: smaller than the server takes, and quick."""


def test_traces_are_seeded_and_every_picture_is_another_one() -> None:
    calls = traces.make_calls(traces.MIXED, 60, 320, seed=1)
    assert calls == traces.make_calls(traces.MIXED, 60, 320, seed=1)
    assert calls[:20] == traces.make_calls(traces.MIXED, 20, 320, seed=1)
    assert len({call.picture for call in calls}) == 60
    assert len({call.fields["sampler"] for call in calls}) > 4
    equal = traces.make_calls(traces.EQUAL, 9, 320, seed=1)
    assert (
        len({(c.fields["sampler"], c.fields["steps"], c.fields["cfg_scale"]) for c in equal}) == 1
    )


@pytest.mark.slow("benchmarks")
def test_diffusers_does_as_many_steps_as_the_engine_for_every_recipe() -> None:
    for call in traces.make_calls(traces.MIXED, 300, 320, seed=1):
        steps, strength = int(call.fields["steps"]), float(call.fields["image_strength"])
        assert int(steps * (1 - strength)) == denoising_steps(steps, strength)
        assert call.fields["sampler"] != Sampler.K_DPMPP_2S_ANCESTRAL


def test_due_times_are_offered_at_exactly_the_rate() -> None:
    due = traces.due_times(40, 2.0, seed=3)
    assert due == sorted(due) == traces.due_times(40, 2.0, seed=3)
    assert due[0] >= 0 and due[-1] <= 20.0
    gaps = np.diff(due)
    assert gaps.std() > 0.5 * gaps.mean()  # not evenly spaced


def test_a_miss_is_infinitely_late() -> None:
    assert percentile([1.0, None, 3.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, None, 3.0, 2.0], 0.75) == 3.0
    assert math.isinf(percentile([1.0, None, 3.0, 2.0], 0.95))


def planned(calls: list[traces.Call], **changed: str) -> list[Planned]:
    return [Planned(0.0, call.fields | changed, call.base64) for call in calls]


def offer_to(app: FastAPI, requests: list[Planned], probes: int = 0) -> Record:
    async def run() -> Record:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
        ):
            plan = Plan("http://server", requests, probes=probes, probe_rate=200, probe_delay=0)
            return await offer(plan, client)

    return asyncio.run(run())


def pictures_of(app: FastAPI, calls: list[traces.Call]) -> list[Pixels]:
    async def run() -> list[Pixels]:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
        ):
            answers = await asyncio.gather(
                *(
                    client.post(PATH, data=call.fields, files={"init_image": ("a", call.picture)})
                    for call in calls
                )
            )
        images = [base64.b64decode(answer.json()["data"]["image"]) for answer in answers]
        return [np.asarray(Image.open(io.BytesIO(image))) for image in images]

    return asyncio.run(run())


def test_the_load_generator_records_answers_probes_and_misses(tiny: ModelBundle) -> None:
    app = plain_server.create_app(tiny)
    calls = traces.make_calls(traces.MIXED, 3, SIDE, seed=1)
    requests = planned(calls[:2]) + planned(calls[2:], steps="many")
    record = offer_to(app, requests, probes=5)
    assert record.misses == ["status 422"]
    assert record.latencies[2] is None
    answered = [latency for latency in record.latencies if latency is not None]
    assert len(answered) == 2
    assert record.seconds >= max(answered)
    assert len(record.probes) == 5
    assert None not in record.probes


def test_a_picture_of_another_size_is_a_miss(tiny: ModelBundle) -> None:
    app = FastAPI()

    @app.post(PATH)
    async def small() -> dict[str, object]:
        return plain_server.picture_answer(Image.new("RGB", (64, 64)), 1)

    record = offer_to(app, planned(traces.make_calls(traces.EQUAL, 1, 320, seed=1)))
    assert record.misses == ["not the picture that was asked for"]


@pytest.mark.slow("benchmarks")
def test_all_servers_make_the_same_pictures_and_only_equal_requests_share_a_batch(
    tiny: ModelBundle,
) -> None:
    calls = traces.make_calls(traces.EQUAL, 3, SIDE, seed=1)
    # Not K_LMS, which diffusers gets wrong after an image-to-image start.
    others = ("K_EULER", "K_EULER_ANCESTRAL", "DDIM")
    mixed = traces.make_calls(traces.MIXED, 30, SIDE, seed=5)
    calls += [call for call in mixed if call.fields["sampler"] in others][:2]
    recipes = {(call.fields["sampler"], call.fields["steps"]) for call in calls}
    assert len(recipes) > 1
    batching = batching_server.create_app(tiny)
    plain = pictures_of(plain_server.create_app(tiny), calls)
    batched = pictures_of(batching, calls)
    sizes = batching.state.batcher.batches
    assert sum(sizes) == len(calls)
    assert max(sizes) > 1
    assert len(sizes) >= len(recipes)
    engine = Engine(tiny, EngineConfig(warm_up=False))
    engine.start()
    ours = [engine.submit(as_request(call)).wait(60).image for call in calls]
    engine.drain()
    for one, other, mine in zip(plain, batched, ours, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
        assert np.abs(one.astype(int) - mine).max() <= 1


def test_a_step_is_timed_for_whole_crowds_only(tiny_folder: Path) -> None:
    samplers = (Sampler.K_EULER, Sampler.K_HEUN)
    costs = measure_steps(
        str(tiny_folder), "cpu", "float32", size=SIDE, samplers=samplers, steps=12, rounds=1
    )
    assert [(c.sampler, c.requests) for c in costs] == [(s, n) for s in samplers for n in (1, 8)]
    assert all(0 < cost.median <= cost.p90 for cost in costs)
    # Twelve evaluations make eleven gaps, of which the first three are not counted.
    assert costs[0].count == 8


@pytest.mark.slow("benchmarks")
def test_the_profile_of_steps_names_this_project_s_functions(tiny_folder: Path) -> None:
    lines = profile_steps(
        str(tiny_folder), "cpu", "float32", size=SIDE, requests=4, sampler=Sampler.K_EULER
    )
    assert any("denoiser." in line for line in lines)
    assert any("aten::" in line for line in lines)
    assert not any(stage in line for line in lines for stage in ("encode.", "decode.", "passes."))


def some_results() -> Results:
    size = SizeResult(SizePlan(320, 1, 1, (0.5,)))
    size.unloaded = {PLAIN: 1.0, BATCHING: 1.0, OURS: 0.9}
    size.saturation = {
        PLAIN: Saturation(10, 10.0, 2.0, ()),
        BATCHING: Saturation(10, 8.0, 1.6, ()),
        OURS: Saturation(10, 5.0, 1.0, ("status 503",)),
    }
    size.points = {
        PLAIN: [Point(0.5, 10, 1.0, 4.0, (), 0.0)],
        BATCHING: [Point(0.5, 10, 1.0, 3.0, (), 0.0)],
        OURS: [Point(0.5, 10, 1.0, math.inf, ("status 503",), 0.0)],
    }
    return Results(
        [size],
        {OURS: Health(100, 0, 0.002, 0.04)},
        (size.saturation[PLAIN], size.saturation[BATCHING]),
        {PLAIN: 2**29, OURS: 2**30},
    )


def test_the_report_has_ratios_and_calls_a_miss_a_miss(tmp_path: Path) -> None:
    results = some_results()
    cost = StepCost(Sampler.DDIM, 8, 10, 0.4, 0.5)
    report = make_report(
        "the command",
        "2026-01-01",
        Model("embedded", "cpu", "float32", 2),
        {"max_running_requests": "8"},
        results,
        {320: [cost]},
        [["a line"]],
        "plot.png",
    )
    assert "    the command\n" in report
    assert "IMG2IMG_MAX_RUNNING_REQUESTS=8" in report
    assert f"| {OURS} | mixed | 10 | 1.800 (1.80) | 1.00 (0.50) | 1 (status 503) |" in report
    assert f"| {OURS} | 1.00 (1.00) | a miss | 1 (status 503) |" in report
    assert "**125 %**" in report
    assert f"| {OURS} | 1024 (2.00) |" in report
    assert "| DDIM | 0.40 (0.50) |" in report
    plot_latency(results.sizes, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.format == "PNG"


def test_the_load_generator_is_a_process(tiny: ModelBundle) -> None:
    plan = Plan("http://127.0.0.1:9", [], timeout=1.0)
    assert Plan.from_json(plan.to_json()) == plan
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.serving.load"],
        cwd=ROOT,
        input=plan.to_json(),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0  # nobody listens on the discard port
    assert "ConnectError" in done.stderr


@pytest.mark.slow("benchmarks")
def test_the_whole_benchmark_on_a_tiny_model(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "serving.md"
    command = [sys.executable, str(ROOT / "scripts" / "bench_serving"), "--mode", "smoke"]
    command += ["--profile", "--model", str(tiny_folder), "--out", str(file)]
    subprocess.run(command, check=True, timeout=400)
    report = file.read_text()
    for heading in ("## 320 x 320", "## Memory", "## The exact lane", "## A step outside"):
        assert heading in report
    assert "| a miss |" not in report  # the introduction has the words as well
    assert "serving_latency.png" in report
    assert (tmp_path / "serving_latency.png").exists()
