"""Several requests with one picture and one text share what is made of those, under way too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import pipelines.engine.model_runner as model_runner
import pipelines.vae.encode as encode
from models.bundle import ModelBundle
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.errors import GenerationCancelled, GenerationFailed
from pipelines.request import GenerationRequest, Pixels
from pipelines.vae.encode import ImageEncoder, encode_image


@pytest.fixture
def engine(tiny: ModelBundle) -> Iterator[Engine]:
    engine = Engine(tiny, EngineConfig(exact=True, warm_up=False))
    engine.start()
    yield engine
    engine.drain(grace=5)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The passes through the encoder that begin while a test runs."""
    begun: list[Any] = []
    begin = encode._encode_pass

    def spy(*args: Any) -> Any:
        begun.append(begin(*args))
        return begun[-1]

    monkeypatch.setattr(encode, "_encode_pass", spy)
    return begun


def several(picture: Pixels) -> list[GenerationRequest]:
    request = GenerationRequest(picture, "a cat", "blurry", steps=4)
    return [replace(request, image=picture.copy(), seed=seed) for seed in (5, 6, 7, 8)]


def test_four_seeds_take_one_encode_and_one_text(
    engine: Engine, picture: Pixels, passes: list[Any]
) -> None:
    handles = [engine.submit(request) for request in several(picture)]
    made = [handle.wait(60).image for handle in handles]
    assert len(passes) == 1
    counts = engine.snapshot().caches
    assert (counts["pictures"].misses, counts["pictures"].hits) == (1, 3)
    assert (counts["prompts"].misses, counts["prompts"].hits) == (2, 6)  # two texts
    assert len({image.tobytes() for image in made}) == 4


def test_one_that_fails_or_is_withdrawn_loses_no_other(
    engine: Engine, picture: Pixels, passes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = model_runner.start_latents

    def failing(request: GenerationRequest, *args: Any) -> torch.Tensor:
        if request.seed == 6:
            raise RuntimeError("no start for this one")
        return start(request, *args)

    monkeypatch.setattr(model_runner, "start_latents", failing)
    requests = several(picture)
    handles = [engine.submit(request) for request in requests]
    handles[0].cancel()
    with pytest.raises(GenerationCancelled):
        handles[0].wait(60)
    with pytest.raises(GenerationFailed):
        handles[1].wait(60)
    made = [handle.wait(60).image for handle in handles[2:]]
    assert len(passes) <= 2  # the first may have been withdrawn before its encode or after
    alone = [engine.submit(request).wait(60).image for request in requests[2:]]
    assert all(np.array_equal(one, other) for one, other in zip(made, alone, strict=True))


def test_a_pass_under_way_is_shared(tiny: ModelBundle, picture: Pixels, passes: list[Any]) -> None:
    encoder = ImageEncoder(tiny)
    with torch.inference_mode():
        first = encoder.begin(picture, tile=False, parts=3)
        assert first.advance() is None
        second = encoder.begin(picture.copy(), tile=False, parts=3)
        assert second.ordinary
        assert second.advance() is None
        moments = first.advance()
        assert moments is not None
        assert not second.ordinary
        assert second.advance() is moments
        third = encoder.begin(picture, tile=False, parts=3)
        assert third.advance() is moments
        assert len(passes) == 1
        assert torch.equal(moments.mean, encode_image(tiny, picture, tile=False).mean)
    assert (encoder.counts.misses, encoder.counts.hits) == (1, 2)


def test_a_pass_goes_on_without_the_one_who_began_it(
    tiny: ModelBundle, picture: Pixels, passes: list[Any]
) -> None:
    encoder = ImageEncoder(tiny)
    with torch.inference_mode():
        first = encoder.begin(picture, tile=False, parts=3)
        first.advance()
        second = encoder.begin(picture, tile=False, parts=3)
        del first
        assert second.advance() is None
        assert second.advance() is not None
        # One that nobody shares is let go with its request.
        lonely = encoder.begin(picture, tile=True, parts=3)
        lonely.advance()
        del lonely
        assert encoder.begin(picture, tile=True, parts=3).advance() is None
    assert len(passes) == 3


def test_a_part_that_fails_fails_its_request_alone(
    tiny: ModelBundle, picture: Pixels, passes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ImageEncoder(tiny)
    with torch.inference_mode():
        want = encode_image(tiny, picture, tile=False)
        first, second, third = (encoder.begin(picture, tile=False, parts=3) for _ in range(3))
        first.advance()

        def fail() -> None:
            raise torch.OutOfMemoryError("no memory for this part")

        monkeypatch.setattr(passes[-1], "advance", fail)
        with pytest.raises(torch.OutOfMemoryError):
            first.advance()
        assert not second.ordinary
        moments = second.advance()  # anew and at once: the scheduler has counted parts
        assert moments is not None
        assert third.advance() is moments
    assert torch.equal(moments.mean, want.mean)
    assert len(passes) == 3  # the one wanted, the one that failed, the one anew
