"""A request in a crowd against the same request alone: the throughput and the exact lane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle import ModelBundle
from models.loading.loader import ModelSpec, load_model
from pipelines.denoise.latent_pool import LatentPool
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.errors import GenerationFailed
from pipelines.handle import GenerationHandle
from pipelines.request import CONTRACT_SAMPLERS, GenerationRequest, Pixels, Sampler

pytestmark = pytest.mark.process

CROWD = 5
QUICK = (Sampler.K_DPMPP_2M,)
"""The default; the crowds below have all ten in them."""
SAMPLERS = [
    sampler if sampler in QUICK else pytest.param(sampler, marks=pytest.mark.slow("properties"))
    for sampler in CONTRACT_SAMPLERS
]


@pytest.fixture(scope="module")
def engine(either_tiny: ModelBundle) -> Iterator[Engine]:
    engine = Engine(either_tiny, EngineConfig(warm_up=False), guessed_costs())
    engine.start()
    yield engine
    engine.drain(grace=5)


@pytest.fixture(scope="module")
def exact_engine(either_tiny: ModelBundle) -> Iterator[Engine]:
    engine = Engine(either_tiny, EngineConfig(exact=True, warm_up=False), guessed_costs())
    engine.start()
    yield engine
    engine.drain(grace=5)


@pytest.fixture(scope="module")
def steady_engine(either_tiny: ModelBundle) -> Iterator[Engine]:
    """It learns nothing: what shares a step is not left to the stop-watch of a busy machine."""
    costs = guessed_costs()
    costs.smoothing = 1e-9
    engine = Engine(either_tiny, EngineConfig(warm_up=False), costs)
    engine.start()
    yield engine
    engine.drain(grace=5)


def stranger(picture: Pixels, rng: np.random.Generator) -> GenerationRequest:
    return GenerationRequest(
        picture,
        f"stranger {rng.integers(100)}",
        image_strength=float(rng.uniform(0.4, 0.95)),
        cfg_scale=float(rng.choice([0.0, 1.0, 5.0])),
        sampler=list(CONTRACT_SAMPLERS)[int(rng.integers(10))],
        steps=int(rng.integers(10, 20)),
        seed=int(rng.integers(1, 10**6)),
    )


def psnr(one: Pixels, other: Pixels) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


class StepLog:
    """What the steps held: their rows, and at which index the request of cfg_scale 6 stood."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.indices: set[int] = set()
        step = engine._runner.denoiser.step

        def watching(pool: LatentPool, evaluations: Any, rows: int) -> Any:
            self.indices |= {i for i, e in enumerate(evaluations) if e.cfg_scale == 6.0}
            done = step(pool, evaluations, rows)
            self.rows.append(done.rows)
            return done

        monkeypatch.setattr(engine._runner.denoiser, "step", watching)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_throughput_lane_gives_the_same_picture_at_every_position(
    engine: Engine, picture: Pixels, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers join and leave at random while it runs, at every row of the batch in turn."""
    request = GenerationRequest(picture, "a cat", "dark", 0.6, 6.0, sampler, steps=10, seed=9)
    alone = engine.submit(request).wait(60).image
    watched = StepLog(engine, monkeypatch)
    rng = np.random.default_rng(list(CONTRACT_SAMPLERS).index(sampler))
    for position in range(CROWD):
        crowd: list[GenerationHandle] = []
        for i in range(CROWD):
            if i == position:
                mine = engine.submit(request)
            crowd.append(engine.submit(stranger(picture, rng)))
        crowd[int(rng.integers(CROWD))].cancel()
        assert psnr(mine.wait(120).image, alone) > 45
        crowd.append(engine.submit(stranger(picture, rng)))
    assert np.mean(watched.rows) > 2.5
    assert len(watched.indices) >= 3  # it stood first, and behind others


def test_a_mixed_crowd_shares_forwards_and_each_gets_its_own_picture(
    steady_engine: Engine, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        GenerationRequest(
            picture,
            f"a cat number {i}",
            image_strength=0.2 + 0.06 * i,
            cfg_scale=[0.0, 1.0, 4.0, 9.0][i % 4],
            sampler=sampler,
            steps=10 + i,
            seed=i + 1,
        )
        for i, sampler in enumerate(CONTRACT_SAMPLERS)
    ]
    alone = [steady_engine.submit(request).wait(60).image.astype(int) for request in requests]
    seen = []
    forward = steady_engine.bundle.unet.forward

    def spy(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(sample.shape[0])
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(steady_engine.bundle.unet, "forward", spy)
    handles = [steady_engine.submit(request) for request in requests]
    crowd = [handle.wait(120).image.astype(int) for handle in handles]
    assert np.mean(seen) > 2.5
    for one, many in zip(alone, crowd, strict=True):
        assert np.abs(one - many).max() <= 1


def test_exact_lane_gives_the_same_bytes_alone_and_in_any_crowd(
    exact_engine: Engine, picture: Pixels
) -> None:
    """Each sampler among the other nine, at other scales, that join and leave while it runs."""
    requests = [
        GenerationRequest(
            picture,
            f"a cat number {i}",
            "dark",
            image_strength=0.5 + 0.04 * i,
            cfg_scale=[6.0, 1.0, 0.0][i % 3],
            sampler=sampler,
            steps=10 + i,
            seed=i + 1,
        )
        for i, sampler in enumerate(CONTRACT_SAMPLERS)
    ]
    alone = [exact_engine.submit(request).wait(60).image for request in requests]
    steps, evaluations = exact_engine.steps.steps, exact_engine.steps.evaluations
    rng = np.random.default_rng(1)
    for _ in range(2):
        order = [int(i) for i in rng.permutation(len(requests))]
        crowd = {i: exact_engine.submit(requests[i]) for i in order}
        leaving = exact_engine.submit(
            GenerationRequest(picture, "slow", image_strength=0.0, steps=50, seed=1)
        )
        for i in order[:5]:
            assert np.array_equal(crowd[i].wait(120).image, alone[i]), requests[i].sampler
        leaving.cancel()
        for i in order[5:]:
            assert np.array_equal(crowd[i].wait(120).image, alone[i]), requests[i].sampler
    steps = exact_engine.steps.steps - steps
    assert exact_engine.steps.evaluations - evaluations > 1.5 * steps


def test_a_request_of_nans_leaves_its_neighbours_bytes_alone(
    exact_engine: Engine, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [GenerationRequest(picture, "a cat", steps=30, seed=seed) for seed in (1, 2, 3)]
    bad = GenerationRequest(picture, "poison", cfg_scale=6.5, steps=30, seed=4)
    want = [exact_engine.submit(request).wait(60).image for request in good]
    step = exact_engine._runner.denoiser.step
    crowds: list[int] = []

    def poisoned(pool: LatentPool, evaluations: Any, rows: int) -> Any:
        for evaluation in evaluations:
            if evaluation.cfg_scale == 6.5:
                pool.state[evaluation.position] = float("nan")
                crowds.append(len(evaluations))
        return step(pool, evaluations, rows)

    monkeypatch.setattr(exact_engine._runner.denoiser, "step", poisoned)
    handles = [exact_engine.submit(r) for r in (good[0], bad, good[1], good[2])]
    with pytest.raises(GenerationFailed, match="FloatingPointError"):
        handles.pop(1).wait(60)
    for handle, image in zip(handles, want, strict=True):
        assert np.array_equal(handle.wait(60).image, image)
    assert max(crowds) > 1


def test_after_an_out_of_memory_error_steps_are_halved_and_nobody_fails(
    exact_engine: Engine, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [GenerationRequest(picture, "a cat", steps=12, seed=seed) for seed in (1, 2, 3, 4)]
    want = [exact_engine.submit(request).wait(60).image for request in requests]
    denoise = exact_engine._runner.denoiser.denoise
    sizes: list[int] = []

    def short_of_memory(pool: LatentPool, batch: Any) -> torch.Tensor:
        sizes.append(len(batch.index))
        if len(batch.index) > 2:
            raise torch.OutOfMemoryError("no memory for so many")
        return denoise(pool, batch)

    monkeypatch.setattr(exact_engine._runner.denoiser, "denoise", short_of_memory)
    handles = [exact_engine.submit(request) for request in requests]
    for handle, image in zip(handles, want, strict=True):
        assert np.array_equal(handle.wait(60).image, image)
    # It was learnt from: not every step tries the full batch again.
    assert 1 <= sum(size > 2 for size in sizes) <= 3
    monkeypatch.undo()
    sizes.clear()
    for handle in [exact_engine.submit(request) for request in requests]:
        handle.wait(60)


def test_a_cancelled_request_stops_being_computed(
    engine: Engine, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = StepLog(engine, monkeypatch)
    request = GenerationRequest(picture, "slow", image_strength=0.0, steps=50, seed=1)
    handle = engine.submit(request)
    while not watched.rows:
        pass
    handle.cancel()
    with pytest.raises(Exception, match="withdrawn"):
        handle.wait(10)
    ended_after = len(watched.rows)
    assert ended_after < 50
    engine.submit(GenerationRequest(picture, "next", steps=10, seed=2)).wait(30)
    # 10 steps at image_strength 0.35 are 6 steps: none was spent on the one that left.
    assert len(watched.rows) - ended_after <= 7
    assert engine.backlog == 0


def test_caches_count_their_hits(engine: Engine, picture: Pixels) -> None:
    before = {name: counts.hits for name, counts in engine.snapshot().caches.items()}
    request = GenerationRequest(255 - picture, "remember me", steps=10, seed=5)
    first, again = (engine.submit(request).wait(60).image for _ in range(2))
    after = {name: counts.hits for name, counts in engine.snapshot().caches.items()}
    assert np.array_equal(first, again)
    assert after["pictures"] == before["pictures"] + 1
    assert after["prompts"] >= before["prompts"] + 2


def test_the_exact_lane_is_exact_with_quantised_layers(tiny_folder: Path, picture: Pixels) -> None:
    pytest.importorskip("torchao")
    spec = ModelSpec(str(tiny_folder), quantize="int8")
    bundle = load_model(spec, device="cpu", dtype="float32")
    engine = Engine(bundle, EngineConfig(exact=True, warm_up=False), guessed_costs())
    engine.start()
    request = GenerationRequest(picture, "a cat", "dark", 0.6, 6.0, steps=14, seed=9)
    alone = engine.submit(request).wait(60).image
    rng = np.random.default_rng(1)
    strangers = [engine.submit(stranger(picture, rng)) for _ in range(3)]
    assert np.array_equal(engine.submit(request).wait(120).image, alone)
    for handle in strangers:
        handle.wait(120)
    engine.drain()
