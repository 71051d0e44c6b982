"""Which replica is the next: what it says, and what this front knows beyond that."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from server.replicas.balance import Balance, Prices, Report, replicas_for
from tests.clock import Clock

SIZE = (512, 512)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def balance(clock: Clock) -> Balance:
    return Balance(clock=clock, chance=lambda: 0.5)


def report(
    number: int = 1,
    backlog: float = 0.0,
    calls: Collection[str] = (),
    warm: Collection[tuple[int, int]] = (),
    obstacle: str | None = None,
) -> Report:
    return Report(number, backlog, 0, 0, frozenset(calls), frozenset(warm), obstacle)


def test_a_report_is_the_same_after_it_has_travelled() -> None:
    said = report(3, 1.5, {"a"}, {SIZE}, "it hangs")
    assert Report.of(said.as_stats()) == said
    assert Report.of({}) == Report()


def test_the_one_with_the_least_to_do_is_first(balance: Balance) -> None:
    balance.hear({"a": report(backlog=3.0), "b": report(backlog=1.0), "c": report(backlog=2.0)})
    assert balance.choose("1", SIZE, 0.0) == ["b", "c", "a"]
    assert balance.replica_of("1") == "b"


def test_calls_that_came_since_the_report_count(balance: Balance) -> None:
    balance.hear({"a": report(), "b": report()})
    chosen = [balance.choose(str(n), SIZE, 1.0)[0] for n in range(6)]
    assert sorted(chosen) == ["a", "a", "a", "b", "b", "b"]
    assert balance.owed() == {"a": 3.0, "b": 3.0}


def test_a_call_that_the_report_has_counts_once(balance: Balance) -> None:
    balance.hear({"a": report()})
    balance.choose("1", SIZE, 1.0)
    balance.hear({"a": report(2, 1.25, {"1"})})
    assert balance.owed() == {"a": 1.25}


def test_a_call_that_has_ended_since_counts_no_more(balance: Balance) -> None:
    balance.hear({"a": report()})
    balance.choose("1", SIZE, 1.0)
    balance.weighed("1", 2.0)
    balance.hear({"a": report(2, 3.0, {"1", "another front's"})})
    balance.ended("1")
    assert balance.owed() == {"a": 1.0}
    balance.hear({"a": report(3, 1.0, {"another front's"})})
    assert balance.owed() == {"a": 1.0}
    assert balance.replica_of("1") is None, "it is forgotten once its replica has forgotten it"


def test_one_that_is_warm_is_preferred_among_near_ones_alone(balance: Balance) -> None:
    balance.hear({"cold": report(), "warm": report(backlog=0.09, warm={SIZE})})
    assert balance.choose("1", SIZE, 1.0)[0] == "warm"
    assert balance.choose("2", (320, 320), 1.0)[0] == "cold"
    balance.hear({"cold": report(2), "warm": report(2, 0.2, warm={SIZE})})
    balance.ended("1")
    balance.ended("2")
    assert balance.choose("3", SIZE, 1.0)[0] == "cold"


def test_those_to_avoid_are_last_however_idle(balance: Balance) -> None:
    balance.hear({"a": report(), "b": report(backlog=9.0), "c": report(backlog=5.0)})
    assert balance.choose("1", SIZE, 1.0, avoid=["a"]) == ["c", "b", "a"]
    assert balance.choose("2", SIZE, 1.0, avoid=["a", "b", "c"])[0] == "a"


def test_only_some_can_be_asked(balance: Balance) -> None:
    balance.hear({"a": report(), "b": report(backlog=9.0)})
    assert balance.choose("1", SIZE, 1.0, among=["b"]) == ["b"]
    balance.moved("1", "a")
    assert balance.replica_of("1") == "a"


def test_one_that_says_nothing_while_others_speak_is_lost(balance: Balance, clock: Clock) -> None:
    balance.hear({"a": report(1), "b": report(1)})
    clock.now += 3.5
    assert balance.lost() == {}, "nobody says anything: the messenger is down"
    balance.hear({"a": report(1), "b": report(2)})
    assert balance.lost() == {"a": "it has said nothing for 3.5 s"}
    assert balance.usable
    assert balance.choose("1", SIZE, 1.0) == ["b", "a"]
    balance.hear({"a": report(2), "b": report(2)})
    assert balance.lost() == {}


def test_one_that_hangs_is_lost_however_much_it_says(balance: Balance) -> None:
    balance.hear({"a": report(obstacle="a step hangs"), "b": report(backlog=9.0)})
    assert balance.lost() == {"a": "a step hangs"}
    assert balance.choose("1", SIZE, 1.0) == ["b", "a"]
    balance.hear({"a": report(2, obstacle="a step hangs")})
    assert not balance.usable


def test_nobody_is_there(balance: Balance) -> None:
    assert balance.choose("1", SIZE, 1.0) == []
    assert not balance.usable
    assert balance.load.backlog_seconds == 0.0


def test_the_load_of_all(balance: Balance) -> None:
    balance.hear(
        {"a": Report(1, 2.0, running=3, waiting=4), "b": Report(1, 1.0, running=1, waiting=0)}
    )
    balance.choose("1", SIZE, 0.5)
    load = balance.load
    assert (load.running, load.waiting, load.backlog_seconds) == (4, 4, 3.5)


def test_prices_are_learnt_from_what_replicas_predict() -> None:
    prices = Prices(most=2)
    prices.learn(SIZE, 2, 20, 0.2)
    assert prices.guess(SIZE, 2, 20) == 0.2
    assert prices.guess(SIZE, 1, 20) == pytest.approx(0.1)
    assert prices.guess((1024, 512), 2, 20) == pytest.approx(0.4)
    prices.learn(SIZE, 2, 0, 5.0)
    prices.learn(SIZE, 2, 20, 0.0)
    assert prices.guess(SIZE, 2, 20) == 0.2, "what costs nothing teaches nothing"
    for side in (320, 384, 448):
        prices.learn((side, side), 2, 20, 1.0)
    assert prices.guess(SIZE, 2, 20) != 0.2, "what was learnt first is forgotten first"


@pytest.mark.parametrize(
    ("backlogs", "queued", "expected"),
    [([], 0, 1), ([0.0], 0, 1), ([4.9], 0, 1), ([5.1], 0, 2), ([10.0, 10.0], 0, 4), ([5], 10, 3)],
)
def test_replicas_for_a_backlog(backlogs: list[float], queued: float, expected: int) -> None:
    assert replicas_for(backlogs, queued, 1.0, 5.0) == expected
