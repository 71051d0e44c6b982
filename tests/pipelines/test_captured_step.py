"""Captured steps on the CPU: an eager stand-in for graphs shows everything but the recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from models.acceleration.cuda_graphs import Capturer, EagerCapturer
from models.acceleration.modes import Acceleration
from models.bundle import ModelBundle
from models.spec import AccelerationMode
from pipelines.denoise.batch import Evaluation, row_count
from pipelines.denoise.captured_step import PATIENCE
from pipelines.denoise.denoiser import Denoiser
from pipelines.denoise.latent_pool import LatentPool, LatentPools
from pipelines.engine import warmup as fast_path
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import CONTRACT_SAMPLERS, GenerationRequest, Pixels, Sampler
from pipelines.samplers.programs import SamplerProgram, make_program
from pipelines.scheduler.batching import GroupKey, pad_rows
from pipelines.vae.noise import RequestNoise

pytestmark = pytest.mark.process

BUCKETS = (1, 2, 4, 8, 16)
KEY = GroupKey(8, 8, 77, False)
SCALES = (7.0, 1.0, 0.0, 4.0, 7.0, 1.0, 3.0, 7.0, 0.0, 9.0)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Crowd:
    """Requests, one of each sampler, that join and leave at chance, in a pool of their own."""

    def __init__(self, tiny: ModelBundle, patience: int | None) -> None:
        self.pool = LatentPool(tiny, KEY, len(CONTRACT_SAMPLERS), patience)
        self.programs: list[SamplerProgram] = [
            make_program(sampler, 10, 0.5) for sampler in CONTRACT_SAMPLERS
        ]
        self.noise = [RequestNoise.draw(i, (4, 8, 8), t.draws) for i, t in enumerate(self.programs)]
        generator = torch.Generator().manual_seed(1)
        text = torch.randn(len(CONTRACT_SAMPLERS), 2, 77, tiny.text_width, generator=generator)
        self.places = [
            self.pool.admit(noise.start * program.steps[0].sigma, text[i])
            for i, (program, noise) in enumerate(zip(self.programs, self.noise, strict=True))
        ]
        self.done = [0] * len(self.programs)

    def run(self, denoiser: Denoiser, buckets: tuple[int, ...] = BUCKETS) -> torch.Tensor:
        """To the end of every program, some of them a step; the final latents, (10, 4, 8, 8)."""
        rng = np.random.default_rng(4)
        while unfinished := [i for i, t in enumerate(self.programs) if self.done[i] < len(t)]:
            chosen = rng.permutation(unfinished)[: rng.integers(1, 8)]
            given = [self._evaluation(int(i)) for i in chosen]
            denoiser.step(self.pool, given, pad_rows(row_count(given), buckets))
            for i in chosen:
                self.done[i] += 1
        return torch.stack([self.pool.latents(place) for place in self.places])

    def _evaluation(self, i: int) -> Evaluation:
        row = self.programs[i].steps[self.done[i]]
        draw = None if row.noise is None else self.noise[i].steps[row.noise]
        return Evaluation(
            self.places[i], row, SCALES[i % len(SCALES)], self.programs[i].slots, draw
        )


def test_captured_steps_give_the_bits_of_steps_as_they_come(tiny: ModelBundle) -> None:
    capturer = EagerCapturer()
    want = Crowd(tiny, None).run(Denoiser(tiny, BUCKETS))
    got = Crowd(tiny, 0).run(Denoiser(tiny, BUCKETS, capturer))
    assert capturer.captures >= 6  # a pair of graphs for three buckets at least
    assert torch.equal(got, want)


def test_nan_in_one_request_stays_there_in_captured_steps(tiny: ModelBundle) -> None:
    clean, poisoned = Crowd(tiny, 0), Crowd(tiny, 0)
    poisoned.pool.state[poisoned.places[3]] = float("nan")
    want = clean.run(Denoiser(tiny, BUCKETS, EagerCapturer()))
    got = poisoned.run(Denoiser(tiny, BUCKETS, EagerCapturer()))
    assert torch.isnan(got[3]).all()
    neighbours = [i for i in range(len(CONTRACT_SAMPLERS)) if i != 3]
    assert torch.equal(got[neighbours], want[neighbours])


class Refusing:
    """A capturer that cannot capture."""

    def __init__(self) -> None:
        self.tries = 0

    def capture(self, run: Callable[[], object]) -> Callable[[], None]:
        self.tries += 1
        raise RuntimeError("no graphs today")


def test_a_failed_capture_is_said_once_and_steps_go_on(
    tiny: ModelBundle, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refusing()
    want = Crowd(tiny, None).run(Denoiser(tiny), (16,))
    got = Crowd(tiny, 0).run(Denoiser(tiny, (16,), refusing), (16,))
    assert torch.equal(got, want)
    assert refusing.tries == 1
    assert [r.getMessage() for r in caplog.records] == [
        "a step of 16 rows is not captured: no graphs today"
    ]


def test_a_size_that_nobody_configured_is_captured_after_some_steps(tiny: ModelBundle) -> None:
    capturer = EagerCapturer()
    crowd, denoiser = Crowd(tiny, PATIENCE), Denoiser(tiny, (16,), capturer)
    captures = []
    for _ in range(PATIENCE + 2):
        denoiser.step(crowd.pool, [crowd._evaluation(0)], 16)
        captures.append(capturer.captures)
    assert captures == [0] * PATIENCE + [2, 2]


def shelf(tiny: ModelBundle, hot: tuple[GroupKey, ...], keep: int, captures: bool) -> LatentPools:
    def make(key: GroupKey, patience: int | None) -> LatentPool:
        return LatentPool(tiny, key, 2, patience)

    return LatentPools(make, captures=captures, hot=hot, keep=keep)


def use(pools: LatentPools, key: GroupKey, denoiser: Denoiser) -> None:
    """A request that enters, steps long enough to be captured, and leaves."""
    pool = pools.enter(key)
    row = make_program(Sampler.K_EULER, 10, 0.5).steps[0]
    for _ in range(PATIENCE + 1):
        denoiser.step(pool, [Evaluation(pool.scratch, row, 1.0, 1, None)])
    pools.leave(key)


def test_pools_that_are_captured_outlive_their_requests_and_are_few(tiny: ModelBundle) -> None:
    denoiser = Denoiser(tiny, (1,), EagerCapturer())
    keys = [GroupKey(8, 8 + 2 * i, 77, False) for i in range(5)]
    pools = shelf(tiny, hot=(keys[0],), keep=2, captures=True)
    for key in keys[:3]:
        use(pools, key, denoiser)
    assert all(key in pools for key in keys[:3])
    use(pools, keys[1], denoiser)  # now the second one is the latest
    use(pools, keys[3], denoiser)
    assert [key in pools for key in keys] == [True, True, False, True, False]
    # What is in use counts for nothing: another size is captured and kept as well.
    pools.enter(keys[1])
    pools.enter(keys[3])
    use(pools, keys[4], denoiser)
    assert [key in pools for key in keys] == [True, True, False, True, True]
    # Of three that are left the one that was left first goes.
    pools.leave(keys[3])
    pools.leave(keys[1])
    assert [key in pools for key in keys] == [True, True, False, True, False]


def test_a_hot_pool_that_could_not_be_captured_is_not_tried_again(tiny: ModelBundle) -> None:
    pools = shelf(tiny, hot=(KEY,), keep=2, captures=True)
    first = pools.enter(KEY)
    pools.leave(KEY)
    assert pools.enter(KEY) is first


def test_steps_with_a_text_that_few_have_are_not_captured(tiny: ModelBundle) -> None:
    pools = shelf(tiny, hot=(KEY,), keep=2, captures=True)
    waits = [pools.enter(GroupKey(8, 8, 77 * n, False)).captured.patience for n in (1, 8, 9, 107)]
    assert waits == [0 if KEY.text_tokens == 77 else PATIENCE, PATIENCE, None, None]


def test_without_captures_no_pool_outlives_its_requests(tiny: ModelBundle) -> None:
    pools = shelf(tiny, hot=(KEY,), keep=2, captures=False)
    first = pools.enter(KEY)
    assert pools.enter(KEY) is first
    pools.leave(KEY)
    assert KEY in pools
    pools.leave(KEY)
    assert len(pools) == 0


def test_an_engine_that_captures_makes_the_same_pictures(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    capturer = EagerCapturer()

    def make(acceleration: Acceleration, device: torch.device) -> Capturer | None:
        return capturer if acceleration.graphs else None

    monkeypatch.setattr(fast_path, "make_capturer", make)
    # Only what captures: fused projections are held to their own test.
    monkeypatch.setattr(fast_path, "accelerate", lambda *_: None)
    pictures = []
    for graphs in (False, True):
        config = EngineConfig(
            row_buckets=(2, 4, 8),
            acceleration=Acceleration(AccelerationMode.GRAPHS, graphs=graphs),
            capture_sizes=[(128, 128)],
        )
        engine = Engine(tiny, config, guessed_costs())
        engine.start()
        handles = [
            engine.submit(
                GenerationRequest(
                    picture, "a cat", cfg_scale=5.0, sampler=sampler, steps=10, seed=9
                )
            )
            for sampler in (Sampler.K_EULER, Sampler.K_LMS, Sampler.K_EULER_ANCESTRAL)
        ]
        pictures.append([handle.wait(120).image for handle in handles])
        engine.drain()
    # At start: the text encoder; of the hot size steps in three buckets, an encode, decodes of one,
    # two and four.
    assert capturer.captures == 1 + 6 + 4
    for plain, captured in zip(*pictures, strict=True):
        assert np.abs(plain.astype(int) - captured).max() <= 1
