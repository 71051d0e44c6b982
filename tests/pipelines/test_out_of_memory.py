"""What a step that runs out of memory means for the steps after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from models.bundle import ModelBundle
from pipelines.denoise.batch import Evaluation, row_count
from pipelines.engine.model_runner import Launched, ModelRunner
from pipelines.engine.preparer import Prepared
from pipelines.handle import GenerationHandle
from pipelines.request import ClipGuidancePreset, GenerationRequest, Pixels
from pipelines.samplers.programs import make_program
from pipelines.scheduler.batching import GroupKey, pad_rows
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.work import Encode, Step
from pipelines.vae.encode import image_digest
from pipelines.vae.noise import RequestNoise

KEY = GroupKey(16, 16, 77, False)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Crowd:
    """Eight requests of two rows on a device that has no memory for what ``too_much`` names."""

    def __init__(
        self,
        bundle: ModelBundle,
        picture: Pixels,
        monkeypatch: pytest.MonkeyPatch,
        too_much: Callable[[Sequence[Evaluation]], bool],
        guided: Sequence[int] = (),
        buckets: Sequence[int] = (),
    ) -> None:
        self.runner = ModelRunner(bundle, buckets, 8)
        self.states: list[RequestState] = []
        self.rows: list[int] = []
        self.here = list(range(8))
        step = self.runner.denoiser.step

        def limited(pool: Any, evaluations: Sequence[Evaluation], rows: int) -> Any:
            self.rows.append(row_count(evaluations))
            if too_much(evaluations):
                raise torch.OutOfMemoryError("no memory for this step")
            return step(pool, evaluations, rows)

        monkeypatch.setattr(self.runner.denoiser, "step", limited)
        # What guidance would do is not asked here.
        monkeypatch.setattr(self.runner.denoiser, "guide", lambda *_: {})
        for ident in self.here:
            preset = ClipGuidancePreset.SLOW if ident in guided else ClipGuidancePreset.NONE
            scale = 2.0 + ident
            request = GenerationRequest(
                picture, "a cat", steps=20, cfg_scale=scale, clip_guidance=preset
            )
            state = RequestState(ident, KEY, 2, 20, arrived=0.0, handle=GenerationHandle(request))
            program = make_program(request.sampler, request.steps, request.strength)
            noise = RequestNoise.of(request, (4, 16, 16), program.draws)
            texts = self.runner.prompts.read(request.prompt, request.negative_prompt)
            self.states.append(state)
            self.runner.add(state, Prepared(texts, program, noise, image_digest(picture)))
            assert self.runner.launch(Encode(KEY, ident, 0, 1, 1.0)).last

    def step(self) -> Launched:
        """Run a step of all that are left; ``rows`` are those of its forwards afterwards."""
        self.rows.clear()
        rows = 2 * len(self.here)
        padded = pad_rows(rows, self.runner.row_buckets)
        launched = self.runner.launch(Step(KEY, tuple(self.here), rows, padded, 1.0))
        for ident in launched.failures:
            self.here.remove(ident)
        return launched


def is_there(ident: int) -> Callable[[Sequence[Evaluation]], bool]:
    return lambda evaluations: any(e.cfg_scale == 2.0 + ident for e in evaluations)


def test_one_that_runs_out_of_memory_alone_narrows_nobody(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(tiny, picture, monkeypatch, is_there(5))
    launched = crowd.step()
    assert crowd.rows == [16, 8, 8, 4, 2, 2, 4]
    assert list(launched.failures) == [5]
    assert (launched.row_cap, launched.out_of_memory) == (None, True)
    assert crowd.step().row_cap is None
    assert crowd.rows == [14]


@pytest.mark.parametrize(("room", "cap"), [(15, 8), (10, 8), (7, 4), (3, 2)])
def test_steps_stay_at_the_rows_that_ran(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch, room: int, cap: int
) -> None:
    crowd = Crowd(tiny, picture, monkeypatch, lambda e: row_count(e) > room)
    launched = crowd.step()
    assert launched.failures == {}
    assert (launched.row_cap, launched.out_of_memory) == (cap, True)


def test_of_unequal_halves_the_larger_is_the_cap(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(tiny, picture, monkeypatch, lambda e: row_count(e) > 8)
    crowd.here = crowd.here[:5]
    assert crowd.step().row_cap == 6
    assert crowd.rows == [10, 4, 6]


def test_padding_counts_in_the_rows_that_ran(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six rows ran as eight: eight of requests are the same forward."""
    buckets = (1, 2, 4, 8, 16)
    crowd = Crowd(tiny, picture, monkeypatch, lambda e: row_count(e) > 8, buckets=buckets)
    crowd.here = crowd.here[:5]
    assert crowd.step().row_cap == 8


def test_one_that_clip_guides_goes_alone_and_narrows_nobody(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In company its gradients find no memory, alone they do."""
    there = is_there(5)
    crowd = Crowd(tiny, picture, monkeypatch, lambda e: there(e) and len(e) > 1, guided=(5,))
    launched = crowd.step()
    assert crowd.rows == [16, 14, 2]
    assert launched.failures == {}
    assert (launched.out_of_memory, launched.row_cap) == (True, None)
    assert [state.ident for state in crowd.states if state.apart] == [5]


def test_where_guidance_is_not_what_takes_the_memory_the_others_are_halved(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(tiny, picture, monkeypatch, lambda e: row_count(e) > 8, guided=(0, 1))
    launched = crowd.step()
    assert crowd.rows == [16, 12, 6, 6, 2, 2]
    assert (launched.failures, launched.row_cap) == ({}, 6)
