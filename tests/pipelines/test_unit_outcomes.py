"""What a unit leaves behind: memory of one that failed, places, and what its time teaches."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from models.acceleration.cuda_graphs import Capturer, EagerCapturer
from models.acceleration.modes import Acceleration
from models.bundle import ModelBundle
from models.spec import AccelerationMode
from pipelines.denoise.captured_step import PATIENCE
from pipelines.denoise.latent_pool import LatentPool
from pipelines.engine import model_runner
from pipelines.engine import warmup as fast_path
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.engine.model_runner import Launched, ModelRunner
from pipelines.engine.preparer import Prepared
from pipelines.errors import GenerationFailed
from pipelines.handle import GenerationHandle
from pipelines.request import GenerationRequest, Pixels
from pipelines.samplers.programs import make_program
from pipelines.scheduler.batching import GroupKey
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.work import Decode, Encode, Step, Work
from pipelines.vae.decode import Decoding
from pipelines.vae.encode import image_digest
from pipelines.vae.noise import RequestNoise
from pipelines.vae.passes import VaePass


@pytest.fixture
def engine(tiny: ModelBundle) -> Iterator[Engine]:
    engine = Engine(tiny, EngineConfig(warm_up=False), guessed_costs())
    engine.start()
    yield engine
    engine.drain(grace=5)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_failed_unit_lets_go_of_what_it_held(
    engine: Engine, picture: Pixels, monkeypatch: pytest.MonkeyPatch, no_collector: None
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def fail(self: Decoding) -> None:
        layer = torch.ones(1000)
        held.append(weakref.ref(layer))
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(Decoding, "launch", fail)
    # What pytest keeps of a log has the frames too.
    monkeypatch.setattr(model_runner.logger, "disabled", True)
    handle = engine.submit(GenerationRequest(picture, "a cat", steps=4))
    with pytest.raises(GenerationFailed):
        handle.wait(60)
    deadline = time.monotonic() + 10
    while held[0]() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held[0]() is None


@torch.inference_mode()
def test_a_failed_part_lets_go_of_what_the_earlier_ones_made(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch, no_collector: None
) -> None:
    """At once: the next unit is launched before the request is released."""
    held: list[weakref.ref[torch.Tensor]] = []
    advance = VaePass.advance

    def fail(self: VaePass) -> torch.Tensor | None:
        if self._part < 2:
            return advance(self)
        held.append(weakref.ref(self._x))
        raise torch.OutOfMemoryError("no memory for the third part")

    monkeypatch.setattr(model_runner.logger, "disabled", True)
    runner, key = ModelRunner(tiny, (), 4), GroupKey(16, 16, 77, False)
    for ident in (1, 2):  # they share the encode
        request = GenerationRequest(picture, "a cat", steps=4)
        handle = GenerationHandle(request)
        state = RequestState(ident, key, 2, 4, arrived=0.0, handle=handle)
        program = make_program(request.sampler, request.steps, request.strength)
        noise = RequestNoise.of(request, (4, 16, 16), program.draws)
        texts = runner.prompts.read(request.prompt, request.negative_prompt)
        runner.add(state, Prepared(texts, program, noise, image_digest(picture)))
    with monkeypatch.context() as patches:
        patches.setattr(VaePass, "advance", fail)
        runner.launch(Encode(key, 2, 0, 4, 1.0))
        parts = [runner.launch(Encode(key, 1, part, 4, 1.0)) for part in (0, 1)]
        assert [list(part.failures) for part in parts] == [[], [1]]
        assert held[-1]() is None
    assert runner.launch(Encode(key, 2, 1, 4, 1.0)).last
    monkeypatch.setattr(VaePass, "advance", fail)
    parts = [runner.launch(Decode(key, 2, part, 4, 1.0)) for part in range(3)]
    assert [list(part.failures) for part in parts] == [[], [], [2]]
    assert len(held) == 2
    assert held[-1]() is None


def test_a_mask_that_finds_no_memory_fails_alone(
    engine: Engine, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LatentPool, *_: object) -> None:
        raise torch.OutOfMemoryError("no memory for what is kept")

    monkeypatch.setattr(LatentPool, "keep", fail)
    mask = np.full(picture.shape[:2], 255, dtype=np.uint8)
    masked = GenerationRequest(picture, "a cat", steps=4, mask=mask)
    plain = GenerationRequest(picture, "a cat", steps=4)
    handles = [engine.submit(request) for request in (plain, masked, plain)]
    with pytest.raises(GenerationFailed):
        handles[1].wait(60)
    for handle in (handles[0], handles[2], engine.submit(plain)):
        handle.wait(60)
    assert len(engine._runner.pools) == 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type[Any], bool]]:
    """The units that are launched: their kind, and whether they are ordinary."""
    seen: list[tuple[type[Any], bool]] = []
    launch = ModelRunner.launch

    def spied(self: ModelRunner, work: Work) -> Launched:
        launched = launch(self, work)
        seen.append((type(work), launched.ordinary))
        return launched

    monkeypatch.setattr(ModelRunner, "launch", spied)
    return seen


@pytest.fixture
def capturing(tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    capturer = EagerCapturer()

    def make(acceleration: Acceleration, device: torch.device) -> Capturer:
        return capturer

    monkeypatch.setattr(fast_path, "make_capturer", make)
    monkeypatch.setattr(fast_path, "accelerate", lambda *_: None)
    config = EngineConfig(
        acceleration=Acceleration(AccelerationMode.GRAPHS, graphs=True), warm_up=False
    )
    engine = Engine(tiny, config, guessed_costs())
    engine.start()
    yield engine
    engine.drain(grace=5)


def test_a_unit_that_was_captured_or_awaits_it_teaches_no_cost(
    capturing: Engine, seen: list[tuple[type[Any], bool]], picture: Pixels
) -> None:
    for seed in range(PATIENCE + 2):
        picture = picture.copy()
        picture[0, 0, 0] = seed  # encoded anew
        capturing.submit(GenerationRequest(picture, "a cat", steps=12, seed=seed)).wait(60)
    steps = [ordinary for kind, ordinary in seen if kind is Step]
    assert steps[: PATIENCE + 1] == [False] * (PATIENCE + 1)
    assert all(steps[PATIENCE + 1 :])
    # As they come they are what tells of the VAE where it is never captured; only the first text,
    # with the first encode, is captured at once.
    for kind, first in ((Encode, False), (Decode, True)):
        passes = [ordinary for one, ordinary in seen if one is kind]
        assert passes == [first] + [True] * (PATIENCE - 1) + [False, True]


@pytest.mark.parametrize(
    ("chunks", "teach"), [(8, [False] * (PATIENCE + 1) + [True]), (9, [False])]
)
def test_a_step_that_is_never_captured_for_its_text_teaches_no_cost_of_text(
    capturing: Engine,
    seen: list[tuple[type[Any], bool]],
    picture: Pixels,
    chunks: int,
    teach: list[bool],
) -> None:
    text = " ".join(["a"] * 75 * chunks)
    capturing.submit(GenerationRequest(picture, text, steps=30)).wait(120)
    steps = [ordinary for kind, ordinary in seen if kind is Step]
    assert steps == teach + teach[-1:] * (len(steps) - len(teach))


def test_where_nothing_is_captured_every_long_text_teaches(
    engine: Engine, seen: list[tuple[type[Any], bool]], picture: Pixels
) -> None:
    text = " ".join(["a"] * 75 * 9)
    engine.submit(GenerationRequest(picture, text, steps=8)).wait(120)
    assert {ordinary for kind, ordinary in seen if kind is Step} == {True}
