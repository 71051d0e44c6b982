"""What is prepared first, and how long its watch expects that to take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from models.bundle import ModelBundle
from pipelines.engine.preparer import Prepared, Preparer
from pipelines.engine.watch import Watch
from pipelines.errors import GenerationCancelled
from pipelines.handle import GenerationHandle
from pipelines.prompt.encoder import PromptChunks
from pipelines.request import GenerationRequest, Sampler
from pipelines.scheduler.batching import GroupKey
from pipelines.scheduler.request_state import RequestState
from pipelines.vae.noise import RequestNoise
from tests.clock import Clock
from tests.waiting import wait_until

TEXTS = PromptChunks((), ())


def state(ident: int, side: int = 64, due: float = 0.0, steps: int = 10) -> RequestState:
    image = np.zeros((side, side, 3), np.uint8)
    request = GenerationRequest(image, "a", sampler=Sampler.K_DPMPP_SDE, steps=steps)
    key = GroupKey(side // 8, side // 8, 77, False)
    made = RequestState(ident, key, 2, 1, arrived=0.0, handle=GenerationHandle(request))
    made.due = due
    return made


def test_what_is_due_sooner_is_prepared_before_what_came_first(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise of a large request may take seconds, for which a small one then waited."""
    order: list[int] = []
    may_draw, draw = threading.Event(), RequestNoise.of

    def held(*arguments: Any) -> RequestNoise:
        assert may_draw.wait(30)
        return draw(*arguments)

    monkeypatch.setattr(RequestNoise, "of", held)
    preparer = Preparer(tiny, Watch("it"), lambda made, _: order.append(made.ident))
    preparer.start()
    preparer.submit(state(0), TEXTS)
    wait_until(lambda: not preparer._waiting)
    for ident, due in ((1, 300.0), (2, 20.0), (3, 10.0), (4, 300.0)):
        preparer.submit(state(ident, due=due), TEXTS)
    may_draw.set()
    preparer.close(30.0)
    assert order == [0, 3, 2, 1, 4]


class Crowd:
    """A preparer that may be ahead by one request, and how many it was ahead by."""

    def __init__(self, bundle: ModelBundle) -> None:
        self.order: list[int] = []
        self.most, self._begun = 0, 0
        self.preparer = Preparer(bundle, Watch("it"), self._done, ahead_bytes=1)
        self.preparer.start()

    def _done(self, made: RequestState, prepared: object) -> None:
        assert isinstance(prepared, Prepared)
        self.order.append(made.ident)
        self.most = max(self.most, len(self.order) - self._begun)

    def begin(self, ident: int) -> None:
        self._begun += 1
        self.preparer.begun(ident)


def test_no_more_noise_waits_than_is_needed(tiny: ModelBundle) -> None:
    """64 requests of the largest would hold gigabytes, which torch keeps where they are pinned."""
    crowd = Crowd(tiny)
    for ident in range(8):
        crowd.preparer.submit(state(ident, due=float(ident)), TEXTS)
    for ident in range(8):
        wait_until(lambda want=ident + 1: len(crowd.order) >= want)
        crowd.begin(ident)
    crowd.preparer.close(30.0)
    assert crowd.order == list(range(8))
    assert crowd.most == 1


def test_what_is_due_before_all_that_is_prepared_does_not_wait_for_it(tiny: ModelBundle) -> None:
    crowd = Crowd(tiny)
    crowd.preparer.submit(state(0, due=300.0), TEXTS)
    wait_until(lambda: crowd.order == [0])
    crowd.preparer.submit(state(1, due=400.0), TEXTS)
    crowd.preparer.submit(state(2, due=20.0), TEXTS)
    wait_until(lambda: crowd.order == [0, 2])
    crowd.begin(2)
    crowd.begin(0)
    wait_until(lambda: crowd.order == [0, 2, 1])
    crowd.preparer.close(30.0)


def test_one_that_ended_before_it_was_begun_keeps_nobody_waiting(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its turn, while its noise is drawn, and after that."""
    crowd, draw = Crowd(tiny), RequestNoise.of
    may_draw, states = threading.Event(), [state(ident, due=float(ident)) for ident in range(4)]

    def held(*arguments: Any) -> RequestNoise:
        assert may_draw.wait(30)
        return draw(*arguments)

    def end(ident: int) -> None:
        handle = states[ident].handle
        assert handle is not None
        handle.fail(GenerationCancelled("the request was withdrawn"))
        crowd.begin(ident)

    monkeypatch.setattr(RequestNoise, "of", held)
    for one in states:
        crowd.preparer.submit(one, TEXTS)
    wait_until(lambda: len(crowd.preparer._waiting) == 3)
    end(0)
    end(1)
    assert [item.state.ident for item in crowd.preparer._waiting] == [2, 3]  # it holds no picture
    may_draw.set()
    wait_until(lambda: 2 in crowd.order)
    end(2)
    wait_until(lambda: 3 in crowd.order)
    crowd.begin(3)
    crowd.preparer.close(30.0)
    assert crowd.order == [0, 2, 3]
    assert crowd.preparer._ahead == {}


def test_the_watch_expects_what_drawing_as_many_numbers_took(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, expected = Clock(), list[float]()
    pace = 25e-9

    class Spy(Watch):
        @contextmanager
        def unit(self, expected_seconds: float = 0.0) -> Iterator[None]:
            expected.append(expected_seconds)
            yield

    def drawn(_: GenerationRequest, shape: tuple[int, int, int], draws: int) -> RequestNoise:
        clock.now += (2 + draws) * np.prod(shape) * pace
        return RequestNoise.draw(1, (1, 1, 1), 0)

    def expectation(side: int, steps: int = 150) -> float:
        preparer._prepare(state(0, side, steps=steps), TEXTS)
        return expected[-1]

    monkeypatch.setattr("pipelines.engine.preparer.time.monotonic", lambda: clock.now)
    monkeypatch.setattr(RequestNoise, "of", drawn)
    preparer = Preparer(tiny, Spy("it"), lambda *_: None)
    first = expectation(1536)
    assert 0.2 < first < 2.0
    assert expectation(768) == pytest.approx(first / 4)
    assert expectation(768, steps=10) < first / 40
    pace = 180e-9  # a busy host
    for _ in range(10):
        last = expectation(1536)
    assert last == pytest.approx(180 / 25 * first, rel=0.2)
    pace = 1e-3  # one that hangs teaches no more than a busy host would
    hung = expectation(1536)
    assert expectation(1536) < 5.0 * hung
