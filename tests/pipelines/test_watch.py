"""Who watches for work that does not end, with a clock of the test's own."""

from __future__ import annotations

import logging

import pytest

from pipelines.engine.watch import Patience, Watch
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_unit_hangs_after_far_more_than_was_expected(clock: Clock) -> None:
    watch = Watch("a unit", Patience(10.0, 5.0, 300.0, 30.0), clock)
    assert (watch.hang, watch.lost, watch.remaining) == (None, False, 0.0)
    with watch.unit(expected=4.0):
        clock.now += 20.0
        assert watch.hang is None
        assert watch.remaining == 0.0
        clock.now += 1.0
        assert watch.hang == "a unit hangs, for 21 s now"
        assert not watch.lost
        clock.now += 280.0
        assert watch.lost
    assert (watch.hang, watch.lost) == (None, False)


def test_short_units_have_a_floor_and_long_ones_are_not_lost_early(clock: Clock) -> None:
    watch = Watch("a unit", Patience(10.0, 5.0, 300.0, 30.0), clock)
    with watch.unit(expected=0.01):
        clock.now += 9.9
        assert watch.hang is None
        clock.now += 0.2
        assert watch.hang is not None
    with watch.unit(expected=20.0):
        assert watch.remaining == pytest.approx(100.0)
        clock.now += 599.0
        assert watch.hang is not None
        assert not watch.lost


def test_the_log_is_told_once_and_when_it_comes_back(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch("a unit", clock=clock)
    with watch.unit():
        clock.now += 26.0
        assert watch.hang
        assert watch.hang
    with watch.unit():
        clock.now += 1.0
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert said == [
        (logging.ERROR, "a unit hangs: 0 s were expected"),
        (logging.WARNING, "a unit came back after 26.0 s"),
    ]


def test_a_unit_that_fails_is_over(clock: Clock) -> None:
    watch = Watch("a unit", clock=clock)
    with pytest.raises(ZeroDivisionError), watch.unit():
        raise ZeroDivisionError
    clock.now += 1000.0
    assert watch.hang is None
