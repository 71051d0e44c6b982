"""Captured VAE passes on the CPU: an eager stand-in for graphs shows all but the recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.acceleration.cuda_graphs import Capturer, EagerCapturer
from models.acceleration.fast_forwards import make_forwards
from models.acceleration.modes import Acceleration
from models.acceleration.torch_kernels import TorchKernels
from models.bundle import ModelBundle
from models.spec import AccelerationMode
from pipelines.engine import warmup as fast_path
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.engine.vitals import Vitals
from pipelines.request import GenerationRequest, Pixels
from pipelines.vae.decode import decode_latents, decode_together
from pipelines.vae.encode import ImageEncoder, encode_image
from pipelines.vae.graphs import PATIENCE, PassKey, VaeGraphs

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=["modules", "our own"])
def model(tiny: ModelBundle, request: pytest.FixtureRequest) -> ModelBundle:
    """The tiny model through its modules, and through forwards of our own."""
    if request.param == "modules":
        return tiny
    own = replace(tiny, unet=deepcopy(tiny.unet))
    own.fast = make_forwards(own, {}, make_kernels=lambda _: TorchKernels(True))
    assert own.fast.vae is not None
    return own


def some_latents(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(4, 8, 12, generator=generator) * 0.2 for _ in range(count)]


def test_forwards_of_our_own_make_the_pictures_of_the_modules(
    tiny: ModelBundle, model: ModelBundle, picture: Pixels
) -> None:
    latents = some_latents(1)[0]
    for tile in (False, True):
        want, got = (decode_latents(m, latents, tile) for m in (tiny, model))
        assert np.abs(want.astype(int) - got).max() <= 1
        want_mean, got_mean = (encode_image(m, picture, tile).mean for m in (tiny, model))
        assert torch.allclose(want_mean, got_mean, atol=1e-5)
    encoding = ImageEncoder(model).begin(picture, tile=False, parts=3)
    in_parts = [encoding.advance() for _ in range(3)][-1]
    assert in_parts is not None
    assert torch.equal(in_parts.mean, encode_image(model, picture, tile=False).mean)


def test_captured_passes_give_the_bits_of_passes_as_they_come(
    model: ModelBundle, picture: Pixels
) -> None:
    capturer = EagerCapturer()
    graphs = VaeGraphs(capturer, [(8, 12), (16, 16)])
    first, second = some_latents(2)
    for latents in (first, second, first):
        (decoded,) = decode_together(model, [latents], graphs)
        assert np.array_equal(decoded.wait(), decode_latents(model, latents, tile=False))
    images = [picture, picture[::-1].copy()]
    made = [encode_image(model, image, False, graphs) for image in images]
    for image, moments in zip(images, made, strict=True):
        want = encode_image(model, image, tile=False)
        # Kept while the graph went on to make others.
        assert torch.equal(moments.mean, want.mean)
        assert torch.equal(moments.std, want.std)
    assert capturer.captures == 2


def test_a_picture_that_is_not_finite_fails_alone_in_a_shared_decode(model: ModelBundle) -> None:
    graphs = VaeGraphs(EagerCapturer(), [(8, 12)])
    latents = some_latents(4)
    latents[2][0, 3, 3] = float("nan")
    together = decode_together(model, latents, graphs)
    for i, (mine, decoded) in enumerate(zip(latents, together, strict=True)):
        if i == 2:
            with pytest.raises(FloatingPointError, match="latents"):
                decoded.wait()
        else:
            want = decode_latents(model, mine, tile=False)
            assert np.abs(decoded.wait().astype(int) - want).max() <= 1


class Counted:
    """A forward that says how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.runs += 1
        return (x * 2,)


def test_a_size_that_nobody_configured_is_captured_after_some_passes() -> None:
    capturer = EagerCapturer()
    graphs, key, x = VaeGraphs(capturer), PassKey("decode", 1, 8, 8), torch.ones(3)
    captures = []
    for _ in range(PATIENCE + 2):
        (made,) = graphs.run(key, x, Counted())
        assert torch.equal(made, x * 2)
        captures.append(capturer.captures)
    assert captures == [0] * PATIENCE + [1, 1]


def test_of_passes_that_nobody_configured_the_last_used_are_kept() -> None:
    capturer = EagerCapturer()
    graphs, x = VaeGraphs(capturer, [(1, 1)], keep=2), torch.ones(3)
    keys = [PassKey("encode", 1, side, side) for side in (1, 2, 3, 4)]

    def use(key: PassKey) -> int:
        before = capturer.captures
        for _ in range(PATIENCE + 1):
            graphs.run(key, x, Counted())
        return capturer.captures - before

    assert [use(key) for key in keys[:3]] == [1, 1, 1]
    assert [use(keys[1]), use(keys[3])] == [0, 1]  # instead of the third
    assert [use(keys[0]), use(keys[1]), use(keys[2])] == [0, 0, 1]


class Refusing:
    """A capturer that cannot capture."""

    def __init__(self) -> None:
        self.tries = 0

    def capture(self, run: Callable[[], object]) -> Callable[[], None]:
        self.tries += 1
        raise RuntimeError("no graphs today")


def test_a_failed_capture_is_said_once_and_passes_go_on(caplog: pytest.LogCaptureFixture) -> None:
    refusing = Refusing()
    graphs, x = VaeGraphs(refusing, [(8, 8)]), torch.ones(3)
    for _ in range(3):
        (made,) = graphs.run(PassKey("encode", 1, 8, 8), x, Counted())
        assert torch.equal(made, x * 2)
    assert refusing.tries == 1
    assert len(caplog.records) == 1
    assert "no graphs today" in caplog.text


@pytest.mark.parametrize("exact", [False, True])
def test_an_engine_shares_decodes_but_never_in_the_exact_lane(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    capturer = EagerCapturer()

    def make(acceleration: Acceleration, device: torch.device) -> Capturer:
        return capturer

    monkeypatch.setattr(fast_path, "make_capturer", make)
    monkeypatch.setattr(fast_path, "accelerate", lambda *_: None)
    shared: list[int] = []
    run = VaeGraphs.run

    def spied(self: VaeGraphs, key: PassKey, *rest: object) -> object:
        if key.kind == "decode":
            shared.append(key.pictures)
        return run(self, key, *rest)  # type: ignore[arg-type]

    graphs = Acceleration(AccelerationMode.GRAPHS, graphs=True)
    config = EngineConfig(acceleration=graphs, exact=exact, warm_up=False)
    engine = Engine(tiny, config, guessed_costs())
    monkeypatch.setattr(VaeGraphs, "run", spied)
    requests = [
        GenerationRequest(picture, "a cat", image_strength=0.7, steps=10, seed=seed)
        for seed in range(1, 9)
    ]
    # All there before anything is done, so that they go together.
    monkeypatch.setattr(Vitals, "alive", property(lambda _: True))
    handles = [engine.submit(request) for request in requests]
    engine.start()
    pictures = [handle.wait(120).image for handle in handles]
    monkeypatch.undo()
    engine.drain()
    assert sum(shared) == len(requests)
    assert (max(shared) > 1) is not exact
    alone = Engine(tiny, EngineConfig(warm_up=False), guessed_costs())
    alone.start()
    want = [alone.submit(request).wait(120).image for request in requests[:2]]
    alone.drain()
    for got, one in zip(pictures, want, strict=False):
        assert np.abs(got.astype(int) - one).max() <= 1
