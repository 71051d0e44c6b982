"""One request's trouble stays its own: withdrawn, out of memory, not a number."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle import ModelBundle
from pipelines.denoise.latent_pool import LatentPool
from pipelines.engine.engine import Engine
from pipelines.errors import GenerationCancelled, GenerationFailed
from pipelines.request import GenerationRequest, Pixels
from pipelines.vae.decode import decode_latents
from scripts.benchmarks.gpu.forwards import unet_inputs
from scripts.benchmarks.gpu.plan import Scale
from tests.gpu.rig import Rig, images


@pytest.fixture(scope="module")
def exact_engine(rig: Rig) -> Iterator[Engine]:
    """Batch-invariant, so that a neighbour's bytes can be compared."""
    with rig.engine(rig.bundle(), exact=True) as engine:
        yield engine


def test_a_withdrawn_request_leaves_and_its_neighbours_bytes_stay(
    rig: Rig, exact_engine: Engine
) -> None:
    request = rig.ask(2, steps=20)
    want = exact_engine.submit(request).wait(120).image
    before = exact_engine.steps.evaluations
    long = exact_engine.submit(rig.ask(3, steps=150, image_strength=0.0))
    while exact_engine.steps.evaluations == before:
        time.sleep(0.001)
    neighbour = exact_engine.submit(request)
    long.cancel()
    with pytest.raises(GenerationCancelled):
        long.wait(60)
    assert np.array_equal(neighbour.wait(120).image, want)
    assert exact_engine.backlog == 0
    # Of its 150 steps most were not run.
    assert exact_engine.steps.evaluations - before < 150


def test_nan_in_one_request_leaves_its_neighbours_bytes_alone(
    rig: Rig, exact_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [rig.ask(seed) for seed in (4, 5, 6)]
    want = images([exact_engine.submit(request) for request in good])
    for got, one in zip(beside_nan(rig, exact_engine, good, monkeypatch), want, strict=True):
        assert np.array_equal(got, one)


def test_nan_in_one_request_fails_none_of_those_in_its_steps(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card a batch-invariant step holds one request; here they share."""
    good = [rig.ask(seed) for seed in (4, 5, 6)]
    with rig.engine(rig.bundle()) as engine:
        assert len(beside_nan(rig, engine, good, monkeypatch)) == len(good)
        assert engine.steps.evaluations > engine.steps.steps


def beside_nan(
    rig: Rig, engine: Engine, good: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> list[Pixels]:
    """Return the images of ``good``, made beside a request whose latents become NaN."""
    denoiser = engine._runner.denoiser
    step = denoiser.step

    def poisoned(pool: LatentPool, evaluations: Any, rows: int) -> Any:
        for evaluation in evaluations:
            if evaluation.cfg_scale == 6.5:
                pool.state[evaluation.position] = float("nan")
        return step(pool, evaluations, rows)

    monkeypatch.setattr(denoiser, "step", poisoned)
    handles = [engine.submit(r) for r in (good[0], rig.ask(7, cfg_scale=6.5), *good[1:])]
    with pytest.raises(GenerationFailed, match="FloatingPointError"):
        handles.pop(1).wait(120)
    return images(handles)


@contextmanager
def short_of_memory(
    rig: Rig, bundle: ModelBundle, scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Room for a forward of few rows of ``scale``'s size, and not for one of sixteen."""
    if rig.narrow:
        predict = bundle.predict

        def limited(latents: torch.Tensor, *others: Any) -> torch.Tensor:
            if len(latents) > 8:
                raise torch.OutOfMemoryError("no memory for so many")
            return predict(latents, *others)

        with monkeypatch.context() as patches:
            patches.setattr(bundle, "predict", limited)
            yield
        return
    needed = _needed(lambda: bundle.predict(*unet_inputs(bundle, scale, 16), False))
    height, width = bundle.latent_size(scale.size, scale.size)
    latents = torch.zeros(4, height, width, device=rig.device)
    decode = _needed(lambda: decode_latents(bundle, latents, tile=False))
    allowed = max(0.75 * needed, 1.2 * decode)
    assert allowed < 0.95 * needed, f"a decode takes {decode} bytes, a forward {needed}"
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(rig.device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + allowed) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@torch.inference_mode()
def _needed(work: Any) -> int:
    """Bytes that ``work`` takes at most beside what is there."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_after_an_out_of_memory_error_steps_are_halved_and_nobody_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scale = replace(rig.scale, size=2 * rig.size)
    requests = [rig.ask(seed, scale.size) for seed in range(1, 9)]
    pixels = 16 * scale.size**2 // 64
    with rig.engine(rig.bundle(), max_pixels=pixels) as engine, caplog.at_level(logging.WARNING):
        with short_of_memory(rig, engine.bundle, scale, monkeypatch):
            pictures = images([engine.submit(request) for request in requests])
        assert all(image.shape == (scale.size, scale.size, 3) for image in pictures)
        assert "out of memory with 16 rows" in caplog.text
        # It goes on as before once there is room.
        images([engine.submit(request) for request in requests[:2]])
        assert engine.alive
