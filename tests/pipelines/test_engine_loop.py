"""The engine's loop, driven with a runner that computes nothing and a timer that only counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from models.bundle import ModelBundle
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.device_timer import Elapsed
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.engine.model_runner import Launched, ModelRunner
from pipelines.engine.preparer import Prepared, Preparer
from pipelines.engine.watch import Watch
from pipelines.errors import (
    DeadlineExceeded,
    EngineDraining,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
)
from pipelines.handle import GenerationHandle
from pipelines.prompt.encoder import PromptEncoder
from pipelines.request import GenerationRequest, Pixels, Progress, Sampler, Stage
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.work import Decode, Encode, Step, Work
from tests.waiting import wait_until

UNIT_SECONDS = 0.25


class FakeTimer:
    """Gives every unit a quarter of a second, and writes down what happens when."""

    def __init__(self, events: list[str], runs_ahead: bool) -> None:
        self.runs_ahead = runs_ahead
        self._events = events
        self._unit = -1

    def start(self) -> None:
        self._unit += 1
        self._events.append(f"launch {self._unit}")

    def stop(self) -> Elapsed:
        unit = self._unit

        def elapsed() -> float:
            self._events.append(f"collect {unit}")
            return UNIT_SECONDS

        return elapsed


class FakeRunner(ModelRunner):
    """Holds as many requests as there are places, and fails those whose seed is in ``broken``."""

    def __init__(self, bundle: ModelBundle, places: int = 16) -> None:
        self.prompts = PromptEncoder(bundle)
        self.places = places
        self.units: list[Work] = []
        self.requests: dict[int, GenerationRequest] = {}
        self.encoded: set[int] = set()
        self.broken: set[int] = set()
        self.row_cap: int | None = None
        self.withdrawn: GenerationHandle | None = None  # cancelled while the third unit runs
        self.hooks: dict[type[Work], Callable[[], None]] = {}  # called as a unit is launched
        self.breaks = False
        self.may_launch = threading.Event()
        self.may_launch.set()

    def add(self, state: RequestState, prepared: Prepared) -> None:
        self.requests[state.ident] = state.request

    def launch(self, work: Work) -> Launched:
        assert self.may_launch.wait(10)
        if self.breaks:
            raise SystemError("the device is gone")
        self.units.append(work)
        self.hooks.get(type(work), lambda: None)()
        if len(self.units) == 3 and self.withdrawn is not None:
            self.withdrawn.cancel()
        failures = {
            ident: GenerationFailed("broken")
            for ident in work.idents
            if self.requests[ident].seed in self.broken
        }
        if isinstance(work, Encode):
            assert len(self.encoded) < self.places
            self.encoded.add(work.ident)
        elif not isinstance(work, Step):
            self.encoded -= set(work.idents)
        self.encoded -= set(failures)
        launched = Launched(ordinary=not failures, failures=failures)
        if isinstance(work, Step):
            launched.row_cap = self.row_cap
            done = sum(isinstance(unit, Step) for unit in self.units)
            launched.previews = {ident: lambda: np.array(done) for ident in work.idents}
        return launched

    def picture(self, ident: int) -> Pixels:
        return self.requests[ident].image

    def release(self, ident: int) -> None:
        self.requests.pop(ident, None)
        self.encoded.discard(ident)


class Rig:
    """An engine over a fake runner and timer. Requests may come before it starts."""

    def __init__(self, bundle: ModelBundle, runs_ahead: bool, places: int = 16) -> None:
        self.events: list[str] = []
        self.runner = FakeRunner(bundle, places)
        self.costs = guessed_costs()
        config = EngineConfig(warm_up=False, max_running_requests=places)
        timer = FakeTimer(self.events, runs_ahead)
        self.engine = Engine(bundle, config, self.costs, runner=self.runner, timer=timer)
        self.engine.start()

    def ask(self, seed: int = 1, timeout: float | None = None, **fields: Any) -> GenerationHandle:
        image = np.full((320, 320, 3), seed, dtype=np.uint8)
        fields = {"image_strength": 0.7, "steps": 10, **fields}
        request = GenerationRequest(image, "a cat", seed=seed, **fields)
        return self.engine.submit(request, timeout)

    @property
    def kinds(self) -> list[str]:
        return [type(unit).__name__ for unit in self.runner.units]


@pytest.fixture(params=[False, True], ids=["host", "ahead"])
def rig(tiny: ModelBundle, request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(tiny, request.param)
    yield rig
    rig.engine.drain(grace=5)


def test_a_request_is_encoded_stepped_and_decoded(rig: Rig) -> None:
    result = rig.ask(seed=7).wait(10)
    assert (result.image == 7).all()
    assert result.seed == 7
    assert result.evaluations == 3
    assert rig.kinds == ["Encode", "Step", "Step", "Step", "Decode"]
    assert result.timings["denoise"] == 3 * UNIT_SECONDS
    assert result.timings["decode"] == UNIT_SECONDS
    assert rig.engine.backlog == 0
    assert not rig.runner.requests


EULER = [(step, step - 11, 19) for step in range(11, 31)]
HEUN = [(11, 0, 37)]
for _step in range(12, 30):
    HEUN += [(_step - 1, 2 * (_step - 11) - 1, 37), (_step, 2 * (_step - 11), 37)]
HEUN += [(30, 37, 37)]


@pytest.mark.parametrize(
    ("sampler", "strength", "want"),
    [(Sampler.K_EULER, 0.35, EULER), (Sampler.K_HEUN, 0.35, HEUN), (Sampler.K_HEUN, 1.0, [])],
)
def test_progress_counts_the_steps_that_were_asked_for(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    sampler: Sampler,
    strength: float,
    want: list[tuple[int, int, int]],
) -> None:
    told: list[Progress] = []
    monkeypatch.setattr(GenerationHandle, "publish", lambda _, progress: told.append(progress))
    rig.ask(image_strength=strength, steps=30, sampler=sampler).wait(10)
    assert {progress.steps for progress in told} <= {30}
    counted = [(p.step, p.evaluation, p.evaluations) for p in told]
    # The first thrice: as it waits, as it is begun, and encoded.
    assert counted == want[:1] * 2 + want
    stages = [Stage.QUEUED, Stage.ENCODING, *[Stage.DENOISING] * (len(want) - 1), Stage.DECODING]
    assert [progress.stage for progress in told] == stages[: len(told)]
    left = [progress.seconds_left for progress in told]
    assert all(seconds is not None and seconds >= 0 for seconds in left)
    assert [progress.queue_position for progress in told] == ([1] + [0] * (len(want) + 1))[
        : len(told)
    ]


def test_a_preview_is_told_with_the_step_that_drew_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    monkeypatch.setattr(GenerationHandle, "publish", lambda _, progress: told.append(progress))
    rig.ask(image_strength=0.5).wait(10)
    drawn = [None if p.preview is None else int(p.preview) for p in told]
    assert drawn == [None, None, None, 1, 2, 3, 4, 5]
    assert [p.evaluation for p in told] == [0, 0, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("pause", "told"), [(0.0, [2, 1, 0]), (1e9, [2, 0])])
def test_those_that_wait_are_told_of_their_place_as_others_begin_and_end(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch, pause: float, told: list[int]
) -> None:
    """Though none comes after them; not more often than the pause allows."""
    monkeypatch.setattr("pipelines.engine.engine._TELL_SECONDS", pause)
    places: dict[GenerationHandle, list[int]] = {}
    monkeypatch.setattr(
        GenerationHandle,
        "publish",
        lambda handle, now: places.setdefault(handle, []).append(now.queue_position),
    )
    rig = Rig(tiny, runs_ahead=False, places=1)
    rig.runner.may_launch.clear()
    rig.ask(seed=1)
    wait_until(lambda: "launch 0" in rig.events)
    handles = [rig.ask(seed) for seed in (2, 3)]
    wait_until(lambda: rig.engine._inbox.qsize() == 2)
    rig.runner.may_launch.set()
    handles[-1].wait(10)
    rig.engine.drain(grace=5)
    assert [place for place, _ in groupby(places[handles[-1]])] == told


def test_a_unit_is_collected_after_the_next_launch_only_where_the_device_runs_ahead(
    tiny: ModelBundle,
) -> None:
    for runs_ahead in (False, True):
        rig = Rig(tiny, runs_ahead)
        rig.ask().wait(10)
        rig.engine.drain(grace=5)
        order = [rig.events.index(event) for event in ("collect 0", "launch 1", "collect 1")]
        assert (order[1] < order[0]) is runs_ahead
        assert order[0] < order[2]
        assert rig.events[-1] == "collect 4"


def test_a_listener_whose_loop_closes_meanwhile_does_not_end_the_engine(rig: Rig) -> None:
    """It may close after it was asked whether it has, which only its own thread could prevent."""
    loop = MagicMock(asyncio.AbstractEventLoop)
    loop.is_closed.return_value = False
    loop.call_soon_threadsafe.side_effect = RuntimeError("Event loop is closed")
    rig.runner.may_launch.clear()
    handle = rig.ask()
    handle._listeners.append((loop, asyncio.Event()))
    rig.runner.may_launch.set()
    assert handle.wait(10).evaluations == 3
    assert loop.call_soon_threadsafe.called


def test_a_failure_ends_its_request_alone(rig: Rig) -> None:
    rig.runner.broken = {2}
    handles = [rig.ask(seed) for seed in (1, 2, 3)]
    with pytest.raises(GenerationFailed, match="broken"):
        handles.pop(1).wait(10)
    assert [handle.wait(10).evaluations for handle in handles] == [3, 3]
    assert not rig.runner.requests
    assert not rig.runner.encoded


def test_only_ordinary_units_teach_their_cost(rig: Rig) -> None:
    rig.runner.broken = {2}
    before = rig.costs.to_json()
    with pytest.raises(GenerationFailed):
        rig.ask(seed=2).wait(10)
    assert rig.costs.to_json() == before
    rig.ask(seed=1).wait(10)
    assert rig.costs.to_json()["steps"] != before["steps"]


def test_a_cancelled_request_is_in_no_further_unit(rig: Rig) -> None:
    handle = rig.ask(seed=1)
    rig.runner.withdrawn = handle
    with pytest.raises(GenerationCancelled):
        handle.wait(10)
    assert rig.ask(seed=2).wait(10).evaluations == 3
    first = rig.runner.units[0].idents
    assert sum(unit.idents == first for unit in rig.runner.units) == 3
    assert rig.engine.backlog == 0


def test_a_deadline_that_has_passed_ends_a_request_before_any_unit(rig: Rig) -> None:
    with pytest.raises(DeadlineExceeded):
        # The first that alone takes longer than it may is let through, see the scheduler's trials.
        rig.ask(timeout=1e-6).wait(10)
    assert rig.runner.units == []


def test_after_a_row_cap_steps_are_narrower(rig: Rig) -> None:
    rig.runner.row_cap = 2
    # All are there at the first step: the cap lasts as long as their crowd.
    rig.runner.may_launch.clear()
    handles = [rig.ask(seed) for seed in range(1, 7)]
    rig.runner.may_launch.set()
    for handle in handles:
        handle.wait(10)
    steps = [unit for unit in rig.runner.units if isinstance(unit, Step)]
    assert [unit.rows for unit in steps[1:]] == [2] * (len(steps) - 1)


def test_one_of_another_size_may_come_while_the_last_unit_of_its_size_runs(
    rig: Rig, picture: Pixels
) -> None:
    """On a card it is predicted after the plan for the other's size is done, before its end."""
    other = GenerationRequest(picture, "a cat", image_strength=0.7, steps=10)
    handles: list[GenerationHandle] = []

    def come() -> None:
        rig.runner.hooks.clear()
        handles.append(rig.engine.submit(other))
        wait_until(lambda: not rig.engine._inbox.empty())

    rig.runner.hooks[Decode] = come
    assert rig.ask().wait(10).evaluations == 3
    assert handles[0].wait(10).evaluations == 3


def test_a_queue_is_prepared_as_it_is_begun_and_ends(tiny: ModelBundle) -> None:
    rig = Rig(tiny, runs_ahead=True, places=1)
    preparer = rig.engine._preparer
    preparer._ahead_bytes = 1
    rig.runner.may_launch.clear()
    handles = [rig.ask(seed) for seed in range(1, 9)]
    wait_until(lambda: list(preparer._ahead) == [1])  # the next one, while the first is encoded
    handles.pop(1).cancel()
    rig.runner.may_launch.set()
    for handle in handles:
        assert handle.wait(10).evaluations == 3
    rig.engine.drain(grace=5)
    assert preparer._ahead == {}


def test_those_that_are_not_prepared_yet_are_told_of_their_place(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise is drawn for the front of the queue: who is far behind may wait for minutes."""
    monkeypatch.setattr(Preparer, "_may_go_on", lambda preparer: preparer._closing)
    rig = Rig(tiny, runs_ahead=True)
    handles = [rig.ask(seed) for seed in range(1, 5)]
    # All that they skip by their strength counts as done.
    for place, handle in enumerate(handles, 1):
        wait_until(partial(_is_told, handle, (place, 7, 10)))
    rig.engine.drain(grace=0.0)


def _is_told(handle: GenerationHandle, places: tuple[int, int, int]) -> bool:
    now = handle.latest
    return now is not None and (now.queue_position, now.step, now.steps) == places


def test_a_place_is_free_once_its_decode_is_launched(tiny: ModelBundle) -> None:
    """With one place and the device ahead, the next encode comes before the decode has ended."""
    rig = Rig(tiny, runs_ahead=True, places=1)
    for handle in [rig.ask(seed) for seed in (1, 2, 3)]:
        assert handle.wait(10).evaluations == 3
    rig.engine.drain(grace=5)
    assert rig.kinds == ["Encode", "Step", "Step", "Step", "Decode"] * 3


@pytest.mark.parametrize("kind", [Encode, Step, Decode])
def test_a_drain_answers_whoever_waits_before_the_present_unit_has_ended(
    rig: Rig, kind: type[Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the unit then ends without those that it was for."""
    monkeypatch.setattr(Watch, "remaining", 60.0)
    runs, may_end = threading.Event(), threading.Event()

    def last() -> None:
        runs.set()
        assert may_end.wait(30)

    rig.runner.hooks[kind] = last
    handles = [rig.ask(seed) for seed in (1, 2)]
    assert runs.wait(10)
    drain = threading.Thread(target=rig.engine.drain, args=(0.0,))
    drain.start()
    for handle in handles:
        with pytest.raises(EngineDraining):
            handle.wait(10)
    units = len(rig.runner.units)
    may_end.set()
    drain.join(10)
    assert not drain.is_alive()
    assert len(rig.runner.units) == units
    assert rig.engine.backlog == 0


def test_a_request_that_the_drain_has_ended_does_not_end_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = RequestState.lost

    def ended_meanwhile(state: RequestState, now: float) -> GenerationError | None:
        if (error := lost(state, now)) is not None:
            rig.engine._fail_all(EngineDraining("stopping", retry_after=5.0))
        return error

    monkeypatch.setattr(RequestState, "lost", ended_meanwhile)
    rig.runner.may_launch.clear()
    handle = rig.ask()
    rig.runner.hooks[Encode] = handle.cancel
    rig.runner.may_launch.set()
    with pytest.raises(EngineDraining):
        handle.wait(10)
    rig.engine.drain(grace=5)
    assert rig.engine.statistics.failed == 1
    assert rig.engine.statistics.cancelled == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_fails_whatever_waits_or_is_in_flight(rig: Rig) -> None:
    rig.runner.breaks = True
    with pytest.raises(GenerationFailed, match="died"):
        rig.ask().wait(10)
    assert not rig.engine.alive
