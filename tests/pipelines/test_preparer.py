"""What is prepared first, and how long its watch expects that to take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from models.bundle import ModelBundle
from pipelines.engine.preparer import Preparer
from pipelines.engine.watch import Watch
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
    wait_until(preparer._inbox.empty)
    for ident, due in ((1, 300.0), (2, 20.0), (3, 10.0), (4, 300.0)):
        preparer.submit(state(ident, due=due), TEXTS)
    may_draw.set()
    preparer.close(30.0)
    assert order == [0, 3, 2, 1, 4]


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
