"""Where a request starts: from noise, at any step, between two seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.bundle import ModelBundle
from models.loading.loader import load_bundle
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.handle import GenerationHandle
from pipelines.request import (
    ENGINE_MAX_STEPS,
    ENGINE_MIN_STEPS,
    GenerationRequest,
    Pixels,
    Sampler,
)
from pipelines.samplers.schedules import denoising_steps
from pipelines.scheduler.batching import GroupKey
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.scheduler import Scheduler
from pipelines.scheduler.work import Encode
from pipelines.vae.noise import RequestNoise, slerp
from scripts.training.world.looks import draw
from scripts.training.world.scene import Scene, Thing
from tests.pipelines.test_masks import pictures


@pytest.fixture
def picture(picture: Pixels) -> Pixels:
    """A small one."""
    return np.ascontiguousarray(picture[64:192, 16:144])


@pytest.fixture(scope="module")
def engine(tiny: ModelBundle) -> Iterator[Engine]:
    engine = Engine(tiny, EngineConfig(exact=True, warm_up=False))
    engine.start()
    yield engine
    engine.drain(grace=5)


def test_from_noise_the_image_gives_the_size_alone_and_is_not_encoded(
    engine: Engine, picture: Pixels
) -> None:
    def encoded() -> int:
        counts = engine.snapshot().caches["pictures"]
        return counts.hits + counts.misses

    request = GenerationRequest(picture, "a cat", image_strength=0.9, steps=4, from_noise=True)
    before = encoded()
    canvas = replace(request, image=np.zeros_like(picture))
    first, second = pictures(engine, [request, canvas])
    assert encoded() == before
    # All steps run, and from what they start at image_strength 0.
    strength = replace(request, from_noise=False, image_strength=0.0)
    assert np.array_equal(first, pictures(engine, [strength])[0])
    assert np.array_equal(first, second)


def test_no_encode_of_a_picture_is_predicted_from_noise(picture: Pixels) -> None:
    scheduler = Scheduler(guessed_costs())
    encode = scheduler.predictions.table.encode_seconds(256)
    request = GenerationRequest(picture, "a cat")
    states = [
        RequestState(
            i,
            GroupKey(16, 16, 77, False),
            2,
            4,
            arrived=0.0,
            handle=GenerationHandle(replace(request, from_noise=i == 1)),
        )
        for i in range(2)
    ]
    plain, noise = (scheduler.predictions.alone(state) for state in states)
    assert plain - noise == pytest.approx(encode)
    for state in states:
        scheduler.offer(state, 0.0)
    first = scheduler.plan()  # due first, because it is done sooner
    assert isinstance(first, Encode)
    assert (first.ident, first.seconds) == (1, 0.0)


def test_first_step_is_image_strength_in_steps(engine: Engine, picture: Pixels) -> None:
    request = GenerationRequest(picture, "a cat", image_strength=0.5, steps=6)
    first = replace(request, image_strength=0.0, first_step=3)
    one, other = (engine.submit(r).wait(60) for r in (request, first))
    assert (one.evaluations, other.evaluations) == (3, 3)
    assert np.array_equal(one.image, other.image)
    for wrong in (-1, 7):
        with pytest.raises(ValueError, match=rf"first_step: {wrong}, must be in 0..6"):
            replace(request, first_step=wrong)


@pytest.mark.parametrize("steps", [ENGINE_MIN_STEPS, ENGINE_MAX_STEPS])
def test_every_first_step_runs_what_is_left(steps: int, picture: Pixels) -> None:
    for first in range(steps + 1):
        request = GenerationRequest(picture, "", steps=steps, first_step=first)
        assert denoising_steps(steps, request.strength) == steps - first


@pytest.mark.parametrize("sampler", [Sampler.K_EULER, Sampler.K_HEUN])
def test_a_request_of_the_most_steps_ends(
    engine: Engine, picture: Pixels, sampler: Sampler
) -> None:
    request = GenerationRequest(picture, "", cfg_scale=1.0, sampler=sampler, steps=ENGINE_MAX_STEPS)
    request = replace(request, first_step=ENGINE_MAX_STEPS - 5)
    evaluations = engine.submit(request).wait(60).evaluations
    assert evaluations == (9 if sampler is Sampler.K_HEUN else 5)


# Two seeds


def test_a_variation_goes_from_one_seed_to_the_other(engine: Engine, picture: Pixels) -> None:
    request = GenerationRequest(picture, "a cat", steps=4, seed=11)
    varied = [
        replace(request, variation_seed=12, variation_strength=strength)
        for strength in (0.0, 0.5, 1.0)
    ]
    one, other, start, middle, end = pictures(engine, [request, replace(request, seed=12), *varied])
    assert np.array_equal(start, one)
    assert np.array_equal(end, other)
    assert not np.array_equal(middle, one)
    assert not np.array_equal(middle, other)


def test_the_noise_of_steps_stays_the_first_seeds(picture: Pixels) -> None:
    request = GenerationRequest(picture, "", seed=3, variation_seed=4, variation_strength=1.0)
    noise = RequestNoise.of(request, (4, 5, 6), 2)
    first, second = (RequestNoise.draw(seed, (4, 5, 6), 2) for seed in (3, 4))
    assert torch.equal(noise.steps, first.steps)
    assert torch.equal(noise.start, second.start)
    assert torch.equal(noise.posterior, second.posterior)


def test_slerp_turns_each_column_by_its_share_of_the_angle() -> None:
    low, high = (RequestNoise.draw(seed, (4, 16, 8), 0).start for seed in (1, 2))
    got = slerp(low, high, 0.3).numpy()
    for c in range(4):
        for x in range(8):
            a, b = low[c, :, x].double().numpy(), high[c, :, x].double().numpy()
            angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            want = (np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b) / np.sin(angle)
            assert np.allclose(got[c, :, x], want, atol=1e-6)
    assert abs(float(got.std()) - 1.0) < 0.1
    assert torch.equal(slerp(low, low, 0.3), low)


# What a prompt says


@pytest.mark.process
def test_the_embedded_model_draws_from_noise_and_inside_a_mask() -> None:
    engine = Engine(load_bundle(device="cpu"), EngineConfig(warm_up=False))
    engine.start()
    circle = draw(Scene((Thing("circle", "red", 0.5, 0.5, 0.5),), "sky", None, 320, 320, seed=5))
    mask = np.zeros((320, 320), np.uint8)
    mask[64:256, 64:256] = 255
    canvas = np.zeros_like(circle)
    common = GenerationRequest(canvas, "a red circle", steps=10, seed=5, from_noise=True)
    requests = [
        replace(common, prompt="a red circle on a plain background"),
        replace(common, prompt="a green circle on a plain background"),
        GenerationRequest(circle, "a blue circle in the sky", steps=10, seed=5, mask=mask),
    ]
    made = pictures(engine, requests)
    engine.drain(grace=5)
    for image, channel in zip(made, (0, 1, 2), strict=True):
        middle = image[140:180, 140:180].reshape(-1, 3).mean(axis=0)
        assert middle.argmax() == channel
        assert middle[channel] > np.delete(middle, channel).max() + 40
    assert np.abs(made[2].astype(int) - circle)[mask == 0].mean() < 8
