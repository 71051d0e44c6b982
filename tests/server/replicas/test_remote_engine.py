"""Requests at engines elsewhere: one that is lost has them done by another, to the same image."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipelines.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineDraining,
    EngineStalled,
    GenerationCancelled,
    RequestTooLong,
    TooManyTogether,
)
from pipelines.handle import GenerationHandle
from pipelines.request import GenerationResult, Progress
from scripts.benchmarks.replicas.sleeping import drawn
from server.replicas import remote_engine as remote_engine_module
from server.replicas import replica as replica_module
from server.replicas.events import Accepted, Event, Finished, Stages
from server.replicas.remote_engine import RemoteEngine, RemoteHandle
from tests.server.replicas.fakes import FakeReplica, picture, remote_engine

SLOW = 200.0
"""A device on which a request takes long, but no unit of it does."""


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_request_gets_its_image_and_its_times() -> None:
    with remote_engine(FakeReplica()) as (engine, _):
        handle = engine.submit(picture(5))
        result = handle.wait(10)
        assert np.array_equal(result.image, drawn(picture(5)))
        assert result.seed == 5
        until(lambda: engine.snapshot().statistics.images == 1)
        assert engine.ready
        assert engine.alive


def test_a_picture_that_comes_back_as_it_is_counts_as_no_image_that_was_made() -> None:
    """As in the engine itself, see docs/observability.md."""
    with remote_engine(FakeReplica()) as (engine, _):
        engine.submit(picture(1, image_strength=1.0)).wait(10)
        engine.submit(picture(2)).wait(10)
        assert engine.snapshot().statistics.images == 1


def test_requests_are_spread() -> None:
    with remote_engine(*(FakeReplica() for _ in range(4))) as (engine, replicas):
        handles = [engine.submit(picture(seed)) for seed in range(1, 17)]
        for handle in handles:
            handle.wait(10)
        assert sorted(len(one.seeds) for one in replicas.replicas.values()) == [4, 4, 4, 4]


def test_a_killed_replicas_request_is_done_by_another() -> None:
    first, second = FakeReplica(SLOW), FakeReplica()
    with remote_engine(first, second) as (engine, replicas):
        replicas.replicas.pop("b")
        handle = engine.submit(picture(9))
        assert first.seeds == [9]
        replicas.replicas["b"] = second
        engine.loop.call_soon_threadsafe(first.killed.set)
        assert np.array_equal(handle.wait(10).image, drawn(picture(9)))
        assert second.seeds == [9]
        assert engine.snapshot().statistics.images == 1


def test_a_frozen_replicas_requests_are_done_by_another() -> None:
    first, second = FakeReplica(), FakeReplica()
    with remote_engine(first, second) as (engine, _):
        first.frozen = True
        handles = [engine.submit(picture(seed)) for seed in (1, 2, 3, 4)]
        for seed, handle in enumerate(handles, 1):
            assert np.array_equal(handle.wait(10).image, drawn(picture(seed)))
        assert len(first.seeds) >= 1
        assert sorted(set(second.seeds)) == [1, 2, 3, 4]


def test_a_replica_that_hangs_loses_its_requests_to_another() -> None:
    first, second = FakeReplica(SLOW), FakeReplica()
    with remote_engine(first, second) as (engine, replicas):
        replicas.replicas.pop("b")
        handle = engine.submit(picture(3))
        replicas.replicas["b"] = second
        first.engine.obstacle = "a step hangs"
        assert handle.wait(10).seed == 3
        assert second.seeds == [3]
        until(lambda: first.engine.snapshot().running == 0)  # withdrawn where it was


def test_with_all_replicas_silent_none_is_lost() -> None:
    first, second = FakeReplica(20.0), FakeReplica(20.0)
    with remote_engine(first, second) as (engine, _):
        handle = engine.submit(picture(3))
        first.silent = second.silent = True
        assert handle.wait(20).seed == 3
        assert len(first.seeds) + len(second.seeds) == 1


def test_a_request_waits_for_a_replica_where_all_were_lost() -> None:
    first, second = FakeReplica(SLOW), FakeReplica()
    with remote_engine(first) as (engine, replicas):
        handle = engine.submit(picture(5))
        engine.loop.call_soon_threadsafe(first.killed.set)
        until(lambda: not engine.ready)
        time.sleep(1.0)
        replicas.replicas["b"] = second
        assert np.array_equal(handle.wait(10).image, drawn(picture(5)))


def test_a_request_that_waits_for_a_replica_can_be_withdrawn() -> None:
    first = FakeReplica(SLOW)
    with remote_engine(first) as (engine, _):
        handle = engine.submit(picture(5))
        engine.loop.call_soon_threadsafe(first.killed.set)
        until(lambda: not engine.ready)
        handle.cancel()
        with pytest.raises(GenerationCancelled):
            handle.wait(10)


def test_the_only_replica_is_lost_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine_module, "RESTART_SECONDS", 0.5)
    first = FakeReplica(SLOW)
    with remote_engine(first) as (engine, _):
        handle = engine.submit(picture())
        engine.loop.call_soon_threadsafe(first.killed.set)
        with pytest.raises(EngineStalled, match="none came back"):
            handle.wait(10)
        until(lambda: not engine.ready)
        with pytest.raises(EngineStalled, match="no replica") as refused:
            engine.submit(picture())
        assert refused.value.retry_after == 5.0


def test_a_full_replica_sends_to_one_that_is_not() -> None:
    full, free = FakeReplica(SLOW, max_queue=1), FakeReplica(SLOW)
    with remote_engine(full, free) as (engine, _):
        for seed in (1, 2, 3):
            engine.submit(picture(seed))
        assert len(set(free.seeds)) >= 2


def test_where_all_are_full_it_says_so_with_the_time_to_wait() -> None:
    with remote_engine(FakeReplica(SLOW, max_queue=1)) as (engine, replicas):
        engine.submit(picture(1))
        with pytest.raises(EngineBusy, match="waiting") as refused:
            engine.submit(picture(2))
        assert refused.value.retry_after > 1
        assert replicas.replicas["a"].seeds == [1, 2], "it is asked once"


def test_a_full_replica_takes_what_a_lost_one_had() -> None:
    first, second = FakeReplica(20.0, max_queue=1), FakeReplica(20.0, max_queue=1)
    with remote_engine(first, second) as (engine, _):
        handles = [engine.submit(picture(seed)) for seed in (1, 2)]
        assert len(first.seeds) == len(second.seeds) == 1
        engine.loop.call_soon_threadsafe(first.killed.set)
        assert [handle.wait(20).seed for handle in handles] == [1, 2]


def test_a_refusal_for_good_comes_as_it_is() -> None:
    with remote_engine(FakeReplica(SLOW), FakeReplica(SLOW)) as (engine, _):
        # One is let through on each.
        let_through = [
            engine.submit(picture(seed), timeout=0.5, arrived=time.monotonic()) for seed in (1, 2)
        ]
        with pytest.raises(RequestTooLong, match=r"over the limit of 0\.5 s"):
            engine.submit(picture(3), timeout=0.5, arrived=time.monotonic())
        for handle in let_through:
            with pytest.raises(DeadlineExceeded):
                handle.wait(10)


@pytest.mark.parametrize("others", [0, 1])
def test_a_batch_is_too_much_where_every_replica_is_full_of_it(others: int) -> None:
    two = FakeReplica(SLOW, max_queue=2), FakeReplica(SLOW, max_queue=2)
    with remote_engine(*two) as (engine, _):
        for _ in range(others):
            engine.submit(picture())
        for _ in range(4 - others):
            engine.submit(picture(batch="one"))
        with pytest.raises(EngineBusy) as refused:
            engine.submit(picture(batch="one"))
        assert isinstance(refused.value, TooManyTogether) is (others == 0)
        with pytest.raises(EngineBusy, match="2 requests are waiting"):
            engine.submit(picture(batch="another"))


def test_a_batch_is_not_too_much_while_a_replica_is_away_or_was_not_asked() -> None:
    five = [FakeReplica(SLOW, max_queue=1) for _ in range(5)]
    with remote_engine(*five) as (engine, replicas):
        del replicas.replicas["e"]
        for _ in range(4):
            engine.submit(picture(batch="one"))
        with pytest.raises(EngineBusy) as refused:
            engine.submit(picture(batch="one"))
        assert not isinstance(refused.value, TooManyTogether)


def test_the_deadline_counts_from_the_arrival_at_the_front() -> None:
    with (
        remote_engine(FakeReplica(30.0)) as (engine, _),
        pytest.raises(EngineBusy, match="about 1 s are left"),
    ):
        engine.submit(picture(steps=50), timeout=30.0, arrived=time.monotonic() - 29.0)


def test_a_withdrawn_request_leaves_its_replica() -> None:
    one = FakeReplica(SLOW)
    with remote_engine(one) as (engine, _):
        handle = engine.submit(picture())
        until(lambda: one.engine.snapshot().running + one.engine.snapshot().waiting == 1)
        handle.cancel()
        with pytest.raises(GenerationCancelled):
            handle.wait(10)
        until(lambda: one.engine.snapshot().running + one.engine.snapshot().waiting == 0)
        assert one.replica.report().calls == frozenset()


def test_progress_travels_only_once_it_is_asked_for() -> None:
    with remote_engine(FakeReplica(10.0)) as (engine, replicas):
        quiet = engine.submit(picture(1))
        watched = engine.submit(picture(2))
        seen = asyncio.run(_progress_of(engine, watched))
        quiet.wait(10)
        assert len(seen) > 3
        assert replicas.replicas["a"].watched == [watched.attempt]
        assert super(type(quiet), quiet).latest is None


async def _progress_of(engine: RemoteEngine, handle: object) -> list[Progress]:
    return [progress async for progress in handle.progress()]  # type: ignore[attr-defined]


def test_draining_lets_what_runs_finish_and_takes_no_more() -> None:
    with remote_engine(FakeReplica(10.0)) as (engine, replicas):
        handle = engine.submit(picture(4))
        engine.drain(10.0)
        assert handle.wait(0).seed == 4
        assert replicas.closed
        with pytest.raises(EngineDraining):
            engine.submit(picture())


def test_draining_fails_what_does_not_finish() -> None:
    with remote_engine(FakeReplica(SLOW)) as (engine, _):
        handle = engine.submit(picture(4))
        engine.drain(0.1)
        with pytest.raises(EngineDraining):
            handle.wait(0)


def test_what_a_drain_has_answered_is_given_to_no_replica() -> None:
    """Its replica is lost, and another one comes just when the drain has told its caller."""
    first, second = FakeReplica(SLOW), FakeReplica(SLOW)
    with remote_engine(first) as (engine, replicas):
        handle = engine.submit(picture(1))
        engine.loop.call_soon_threadsafe(first.killed.set)
        until(lambda: not engine.ready)
        with ThreadPoolExecutor(1) as pool:
            draining = pool.submit(engine.drain, 0.0)
            until(lambda: handle.done)
            replicas.replicas["b"] = second
            draining.result(5)
        assert replicas.closed
        assert second.seeds == []


def test_a_drain_that_fails_leaves_the_replicas_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def end(engine: RemoteEngine) -> None:
        raise TimeoutError

    with remote_engine(FakeReplica()) as (engine, replicas):
        monkeypatch.setattr(RemoteEngine, "_end", end)
        with pytest.raises(TimeoutError):
            engine.drain(0.0)
        assert replicas.closed


def test_a_preview_travels_once_and_is_the_same_object_until_there_is_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "PROGRESS_SECONDS", 0.0)
    one, other = (np.full((4, 4, 3), shade, np.uint8) for shade in (1, 2))
    drawn_in_turn = [None, one, one, other, other]

    async def carried() -> list[Progress]:
        handle, watched, told = GenerationHandle(picture()), asyncio.Event(), []
        watched.set()
        events = replica_module._paced(handle, watched)
        for step, preview in enumerate(drawn_in_turn):
            handle.publish(Progress(step, 5, step, 5, preview=preview))
            told.append(await anext(events))
        handle.cancel()
        await events.aclose()
        return told

    told = asyncio.run(carried())
    assert [at.preview for at in told] == [None, one, None, other, None]

    class Told:
        async def __aiter__(self) -> AsyncGenerator[Event]:
            yield Accepted(1.0)
            for progress in told:
                yield progress
            yield Finished(GenerationResult(one, 1), Stages())

        def cancel(self) -> None:
            pass

    published: list[Progress] = []
    with remote_engine(FakeReplica()) as (engine, replicas):
        monkeypatch.setattr(replicas, "call", lambda *_: Told())
        monkeypatch.setattr(RemoteHandle, "publish", lambda _, told: published.append(told))
        engine.submit(picture()).wait(10)
    assert [at.step for at in published] == [0, 1, 2, 3, 4]
    for at, preview in zip(published, drawn_in_turn, strict=True):
        assert at.preview is preview


def test_a_replica_that_stops_hands_its_requests_on() -> None:
    first, second = FakeReplica(SLOW), FakeReplica()
    with remote_engine(first, second) as (engine, replicas):
        replicas.replicas.pop("b")
        handle = engine.submit(picture(6))
        replicas.replicas["b"] = second
        first.engine.drain(0.0)
        assert handle.wait(10).seed == 6
        assert second.seeds == [6]
