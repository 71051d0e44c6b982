"""What the engine measures of its device at warm-up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.acceleration.cuda_graphs import EagerCapturer
from models.acceleration.modes import ROW_BUCKETS
from models.bundle import ModelBundle
from pipelines.denoise.latent_pool import LONGEST_CAPTURED, LatentPool
from pipelines.engine import calibration
from pipelines.engine.calibration import guessed_costs, measure_costs
from pipelines.engine.config import EngineConfig
from pipelines.engine.model_runner import ModelRunner
from pipelines.engine.warmup import warm_up
from pipelines.scheduler.batching import GroupKey, StepLimits
from pipelines.scheduler.scheduler import PolicyConfig


def clock_of(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


@pytest.mark.parametrize(
    ("budget", "limits", "rows", "sizes"),
    [
        (1e9, StepLimits(), ROW_BUCKETS, 2),
        (1e9, StepLimits(max_rows=4), (1, 2, 4), 2),
        (0.0, StepLimits(), (1, 2), 1),
    ],
)
@torch.inference_mode()
def test_as_much_is_measured_as_the_budget_allows(
    tiny: ModelBundle,
    monkeypatch: pytest.MonkeyPatch,
    budget: float,
    limits: StepLimits,
    rows: tuple[int, ...],
    sizes: int,
) -> None:
    # What is timed ticks by the look: a smaller picture is measured as a large one is.
    monkeypatch.setattr(calibration, "SIDES", (64, 128))
    ticking = clock_of(0.5)
    table = measure_costs(ModelRunner(tiny, (), 4), limits, budget, lambda: next(ticking))
    points = [tuple(point[:2]) for point in table.to_json()["steps"]]
    pixels = sorted({p for p, _ in points})
    assert len(pixels) == sizes
    assert points == [(p, r) for p in pixels for r in rows]
    # Every interval of this clock is half a second.
    assert table.step_seconds(pixels[0], 2) == 0.5
    assert table.encode_seconds(pixels[0]) == pytest.approx(0.5)
    assert table.decode_seconds(pixels[0]) == pytest.approx(0.5)


@torch.inference_mode()
def test_text_and_vae_are_measured_as_they_will_run(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SIDES", (64, 128))
    capturer, ticking = EagerCapturer(), clock_of(0.5)
    runner = ModelRunner(tiny, ROW_BUCKETS, 4, capturer)
    table = measure_costs(runner, StepLimits(max_rows=2), 0.0, lambda: next(ticking))
    assert capturer.captures == 2 * 2 + 1 + 2  # two graphs a step
    assert table.decode_seconds(64) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("sides", "sizes"), [([96], ["small", "large"]), ([128], ["small"]), ([64, 128], [])]
)
@torch.inference_mode()
def test_what_warm_up_has_captured_is_timed_and_not_captured_again(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch, sides: list[int], sizes: list[str]
) -> None:
    monkeypatch.setattr(calibration, "SIDES", (64, 128))
    capturer, ticking = EagerCapturer(), clock_of(0.5)
    limits = StepLimits(max_rows=2, buckets=(1, 2))
    hot = [GroupKey(*tiny.latent_size(side, side), 77, False) for side in sides]
    runner = ModelRunner(tiny, limits.buckets, 4, capturer, hot)
    warm_up(runner, EngineConfig(), PolicyConfig(limits=limits))
    before = capturer.captures
    measure_costs(runner, limits, 1e9, lambda: next(ticking))
    steps = 2 * len(limits.buckets) * len(sizes) + 2  # two graphs each; the long text has one row
    assert capturer.captures - before == steps + 2  # an encode and a decode of the small size
    assert len(runner.pools) == len(hot)


@torch.inference_mode()
def test_no_more_rows_are_captured_in_a_pool_that_serves_than_it_will_run(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SIDES", (64, 128))
    capturer, ticking = EagerCapturer(), clock_of(0.5)
    large = GroupKey(*tiny.latent_size(128, 128), 77, False)
    limits = StepLimits(max_rows=4, max_pixels=2 * large.latent_pixels, buckets=(1, 2, 4))
    runner = ModelRunner(tiny, limits.buckets, 4, capturer, [large])
    warm_up(runner, EngineConfig(), PolicyConfig(limits=limits))
    table = measure_costs(runner, limits, 1e9, lambda: next(ticking))
    timed = [tuple(point[:2]) for point in table.to_json()["steps"]]
    assert (64, 4) in timed
    assert limits.rows_for(large) == 2
    captured = runner.pools[large].captured
    assert [rows for rows in (1, 2, 4) if captured.awaited(rows)] == [4]


@pytest.mark.parametrize(
    ("capturer", "longest"), [(None, calibration.TEXT_CHUNKS * 77), (EagerCapturer(), 8 * 77)]
)
@torch.inference_mode()
def test_a_long_text_is_measured_as_it_will_run(
    tiny: ModelBundle,
    monkeypatch: pytest.MonkeyPatch,
    capturer: EagerCapturer | None,
    longest: int,
) -> None:
    keys: list[GroupKey] = []

    class Pool(LatentPool):
        def __init__(
            self, bundle: ModelBundle, key: GroupKey, *, capacity: int, patience: int | None
        ):
            super().__init__(bundle, key, capacity, patience)
            keys.append(key)

    monkeypatch.setattr(calibration, "SIDES", (64, 128))
    monkeypatch.setattr(calibration, "LatentPool", Pool)
    ticking = clock_of(0.5)
    runner = ModelRunner(tiny, ROW_BUCKETS, 4, capturer)
    measure_costs(runner, StepLimits(max_rows=2), 1e9, lambda: next(ticking))
    assert {key.text_tokens for key in keys} == {77, longest}
    assert longest <= LONGEST_CAPTURED or capturer is None


def test_the_guess_says_that_sharing_gains() -> None:
    table = guessed_costs()
    assert table.step_seconds(1600, 8) < 4 * table.step_seconds(1600, 2)
    assert table.provenance.name == "guessed"
