"""A picture that overflows half precision in the VAE's encoder, as some do in its decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import ModelBundle
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.device_timer import Elapsed, HostTimer
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.engine.model_runner import Launched, ModelRunner
from pipelines.errors import GenerationFailed
from pipelines.handle import GenerationHandle
from pipelines.request import GenerationRequest, Pixels, Progress, Sampler, Stage
from pipelines.scheduler.work import Encode, Step, Work
from pipelines.vae.encode import ImageEncoder, encode_image
from tests.host_waits import no_host_waits
from tests.tiny_model import tiny_bundle


def overflow_where(true: Callable[[torch.dtype], bool]) -> Callable[..., torch.Tensor]:
    def hook(_: object, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        return out * float("inf") if true(args[0].dtype) else out

    return hook


@pytest.fixture
def half(tiny_folder: Path) -> ModelBundle:
    """A model whose encoder overflows in half precision, and not in float32."""
    bundle = tiny_bundle(tiny_folder, torch.bfloat16)
    hook = overflow_where(lambda dtype: dtype is not torch.float32)
    bundle.vae.encoder.conv_out.register_forward_hook(hook)
    return bundle


class AheadTimer(HostTimer):
    """The host is a unit ahead, as of a card."""

    runs_ahead = True

    def stop(self) -> Elapsed:
        return lambda: 0.01


@contextmanager
def running(bundle: ModelBundle, *, ahead: bool = True) -> Iterator[Engine]:
    timer = AheadTimer() if ahead else HostTimer()
    engine = Engine(bundle, EngineConfig(exact=True, warm_up=False), guessed_costs(), timer=timer)
    engine.start()
    yield engine
    engine.drain(grace=5)


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """The units that are launched."""
    units: list[Work] = []
    launch = ModelRunner.launch

    def spied(self: ModelRunner, work: Work) -> Launched:
        units.append(work)
        return launch(self, work)

    monkeypatch.setattr(ModelRunner, "launch", spied)
    return units


@pytest.mark.parametrize("tile", [False, True])
@torch.inference_mode()
def test_it_is_encoded_once_more_in_float32(
    tiny: ModelBundle, half: ModelBundle, picture: Pixels, tile: bool
) -> None:
    encoder = ImageEncoder(half)
    with no_host_waits(half.device):
        first = encoder.encode(picture, tile)
    assert not first.finite
    got = encoder.again(picture, tile)
    want = encode_image(tiny, picture, tile)
    assert torch.allclose(got.mean, want.mean, atol=0.05)  # its weights are rounded
    assert torch.allclose(got.std, want.std, atol=0.05)
    assert encoder.encode(picture, tile) is got
    assert encoder.again(picture, tile) is got  # for another who has begun with the first ones
    assert half.vae.dtype is torch.bfloat16


@torch.inference_mode()
def test_what_cannot_be_finite_is_not_kept(tiny_folder: Path, picture: Pixels) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        bundle = tiny_bundle(tiny_folder, dtype)
        bundle.vae.encoder.conv_out.register_forward_hook(overflow_where(lambda _: True))
        encoder = ImageEncoder(bundle)
        assert not encoder.encode(picture, tile=False).finite
        with pytest.raises(FloatingPointError, match="the latents are not finite"):
            encoder.again(picture, tile=False)
        encoder.encode(picture, tile=False)
        assert encoder._cache.counts.hits == 0


@torch.inference_mode()
def test_one_who_shared_the_pass_does_not_bring_its_moments_back(
    half: ModelBundle, picture: Pixels
) -> None:
    encoder = ImageEncoder(half)
    first, second = (encoder.begin(picture, tile=False, parts=2) for _ in range(2))
    first.advance()
    assert first.advance() is not None
    good = encoder.again(picture, tile=False)
    late = second.advance()
    assert late is not None
    assert not late.finite
    assert encoder.encode(picture, tile=False) is good


@pytest.mark.parametrize("ahead", [False, True], ids=["host", "ahead"])
def test_the_request_begins_anew_and_nothing_is_left_of_the_first_time(
    half: ModelBundle, picture: Pixels, units: list[Work], ahead: bool
) -> None:
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[:, 64:] = 255
    plain = GenerationRequest(picture, "a cat", sampler=Sampler.K_DPMPP_2M, steps=10, seed=3)
    requests = [
        plain,
        replace(plain, sampler=Sampler.K_EULER_ANCESTRAL, previews=True, image=picture[::-1]),
        replace(plain, mask=mask, image=picture[:, ::-1]),
    ]
    with running(half, ahead=ahead) as engine:
        for request in requests:
            units.clear()
            first = engine.submit(request).wait(60)
            steps = [unit for unit in units if isinstance(unit, Step)]
            # Of a card the host has launched one of the steps before it knows.
            assert len(steps) == first.evaluations + ahead
            units.clear()
            again = engine.submit(request).wait(60)
            assert len(units) == 1 + again.evaluations + 1
            assert again.evaluations == first.evaluations
            assert np.array_equal(first.image, again.image)


def test_those_who_share_the_picture_get_theirs(
    half: ModelBundle, picture: Pixels, units: list[Work]
) -> None:
    request = GenerationRequest(picture, "a cat", steps=8)
    requests = [replace(request, seed=seed, image=picture.copy()) for seed in (5, 6, 7)]
    with running(half) as engine:
        handles = [engine.submit(one) for one in requests]
        crowd = [handle.wait(60).image for handle in handles]
        alone = [engine.submit(one).wait(60).image for one in requests]
    assert all(np.array_equal(one, other) for one, other in zip(crowd, alone, strict=True))


@pytest.mark.parametrize("ahead", [False, True], ids=["host", "ahead"])
def test_what_cannot_be_finite_fails_at_once(
    half: ModelBundle, picture: Pixels, units: list[Work], ahead: bool
) -> None:
    half.vae.encoder.conv_out.register_forward_hook(overflow_where(lambda _: True))
    with running(half, ahead=ahead) as engine:
        for _ in range(2):
            units.clear()
            handle = engine.submit(GenerationRequest(picture, "a cat", steps=20))
            with pytest.raises(GenerationFailed, match="FloatingPointError"):
                handle.wait(60)
            assert [type(unit) for unit in units] == [Encode, Step][: 1 + ahead]
        assert engine.backlog == 0
        assert len(engine._runner.pools) == 0


def test_progress_counts_from_the_first_step_once(
    half: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    monkeypatch.setattr(GenerationHandle, "publish", lambda _, progress: told.append(progress))
    request = GenerationRequest(picture, "a cat", steps=10, previews=True)
    with running(half) as engine:
        made = engine.submit(request).wait(60)
    stages = [Stage.QUEUED, Stage.ENCODING, Stage.DENOISING, Stage.DECODING]
    assert [one.stage for one in told] == sorted((one.stage for one in told), key=stages.index)
    counted = [one.evaluation for one in told]
    assert counted == sorted(counted)
    assert sorted(set(counted)) == list(range(made.evaluations + 1))
    assert [one.preview is not None for one in told] == [one > 0 for one in counted]
