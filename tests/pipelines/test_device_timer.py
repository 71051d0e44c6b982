"""The host stays one unit ahead of a card: shown with a timer that only says so."""

from __future__ import annotations

import numpy as np
import torch

from models.bundle import ModelBundle
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.device_timer import Elapsed, HostTimer, make_timer
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import GenerationRequest, Pixels


class RunningAhead:
    """Writes down when units are launched and when their time is asked for."""

    runs_ahead = True

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self._unit = -1

    def start(self) -> None:
        self._unit += 1
        self.events.append(("launch", self._unit))

    def stop(self) -> Elapsed:
        unit = self._unit

        def elapsed() -> float:
            self.events.append(("time", unit))
            return 0.01

        return elapsed


def picture_of(engine: Engine, picture: Pixels) -> tuple[Pixels, dict[str, float]]:
    engine.start()
    request = GenerationRequest(picture, "a cat", image_strength=0.7, steps=10, seed=5)
    result = engine.submit(request).wait(60)
    engine.drain()
    return result.image, dict(result.timings)


def test_a_units_time_is_read_when_the_next_one_is_launched(
    tiny: ModelBundle, picture: Pixels
) -> None:
    config = EngineConfig(warm_up=False)
    want, _ = picture_of(Engine(tiny, config, guessed_costs()), picture)
    ahead = RunningAhead()
    got, timings = picture_of(Engine(tiny, config, guessed_costs(), timer=ahead), picture)
    assert np.array_equal(got, want)
    units = max(unit for _, unit in ahead.events) + 1
    assert units == 5  # an encode, three steps, a decode
    for unit in range(units - 1):
        assert ahead.events.index(("launch", unit + 1)) < ahead.events.index(("time", unit))
    # The picture is there after the decode, and with it the time of all.
    assert ahead.events[-1] == ("time", units - 1)
    assert timings["denoise"] == 0.03


def test_the_cpu_is_timed_by_the_hosts_clock() -> None:
    timer = make_timer(torch.device("cpu"))
    assert isinstance(timer, HostTimer)
    assert not timer.runs_ahead
    timer.start()
    first = timer.stop()
    timer.start()
    assert first() == first() >= 0.0
