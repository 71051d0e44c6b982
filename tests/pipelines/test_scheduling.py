"""The scheduling policy and its cost table, with numbers alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.request import ClipGuidancePreset
from pipelines.scheduler.batching import GroupKey, StepLimits
from pipelines.scheduler.cost_model import CostTable, ImageCost, StepPoint
from pipelines.scheduler.guidance_cost import MEASURED
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.scheduler import CAP_STEPS, PolicyConfig, Scheduler
from pipelines.scheduler.work import Decode, Encode, Refusal, Step, TooLong

SMALL = GroupKey(40, 40, 77, False)
MEDIUM = GroupKey(64, 64, 77, False)
LARGE = GroupKey(192, 192, 77, False)
KEYS = (SMALL, MEDIUM, LARGE)


def make_program(fixed: float, per_row: float = 1.0) -> CostTable:
    """A step takes ``fixed + per_row * rows * pixels / 4096`` seconds."""
    points = [
        StepPoint(pixels, rows, fixed + per_row * rows * pixels / 4096)
        for pixels in (1600, 4096, 36864)
        for rows in (1, 2, 4, 16)
    ]
    return CostTable(points, ImageCost(0.0, 1e-4), ImageCost(0.0, 2e-4))


LINEAR = make_program(0.0)
GAINFUL = make_program(10.0)


def put(scheduler: Scheduler, ident: int, key: GroupKey = MEDIUM, **options: float) -> RequestState:
    task = RequestState(
        ident,
        key,
        rows=int(options.get("rows", 2)),
        evaluations=int(options.get("evaluations", 3)),
        arrived=options.get("arrived", 0.0),
        deadline=options.get("deadline"),
    )
    assert scheduler.offer(task, task.arrived) is None
    return task


def run_all(scheduler: Scheduler) -> list[int]:
    """Do everything; the idents in the order they finish."""
    finished: list[int] = []
    for _ in range(10_000):
        work = scheduler.plan()
        if work is None:
            return finished
        finished += scheduler.complete(work)
    raise AssertionError("the work does not end")


# The cost table


@given(
    seconds=st.lists(st.floats(1e-4, 1e3), min_size=9, max_size=9),
    pixels=st.integers(100, 50_000),
    rows=st.integers(1, 64),
    more=st.integers(0, 5_000),
)
def test_more_work_never_costs_less(
    seconds: list[float], pixels: int, rows: int, more: int
) -> None:
    lattice = [(p, r) for p in (1600, 4096, 9216) for r in (1, 4, 16)]
    points = [StepPoint(p, r, s) for (p, r), s in zip(lattice, seconds, strict=True)]
    table = CostTable(points, ImageCost(0, 0), ImageCost(0, 0))
    base = table.step_seconds(pixels, rows)
    nearly = 1 - 1e-9
    assert base > 0
    assert table.step_seconds(pixels + more, rows) >= base * nearly
    assert table.step_seconds(pixels, rows + 1 + more % 7) >= base * nearly


def test_a_table_reads_its_own_points_and_between_them() -> None:
    assert GAINFUL.step_seconds(4096, 4) == pytest.approx(14.0)
    assert GAINFUL.step_seconds(4096, 8) == pytest.approx(18.0)
    assert GAINFUL.step_seconds(4096, 32) == pytest.approx(42.0)
    assert GAINFUL.step_seconds(20480, 2) == pytest.approx(20.0)


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    GAINFUL.save(tmp_path / "table.json")
    again = CostTable.load(tmp_path / "table.json")
    assert again.to_json() == GAINFUL.to_json()
    assert again.step_seconds(5000, 7) == GAINFUL.step_seconds(5000, 7)


def test_a_table_learns_what_it_sees() -> None:
    table = make_program(10.0)
    far = table.step_seconds(36864, 16)
    for _ in range(200):
        table.observe_step(4096, 3, 26.0)
        table.observe_decode(4096, 3.0)
    assert table.step_seconds(4096, 3) == pytest.approx(26.0, rel=0.01)
    assert table.decode_seconds(4096) == pytest.approx(3.0, rel=0.01)
    assert table.step_seconds(36864, 16) == far


def test_a_table_with_a_hole_is_refused() -> None:
    points = [StepPoint(1600, 1, 1.0), StepPoint(1600, 2, 1.0), StepPoint(4096, 1, 1.0)]
    with pytest.raises(ValueError, match="every number of rows"):
        CostTable(points, ImageCost(0, 0), ImageCost(0, 0))


# One request


def test_a_request_is_encoded_denoised_and_decoded_in_parts() -> None:
    scheduler = Scheduler(LINEAR)
    put(scheduler, 7, LARGE, evaluations=2)
    seen = []
    while (work := scheduler.plan()) is not None:
        seen.append(work)
        scheduler.complete(work)
    assert [type(work) for work in seen] == [Encode] * 9 + [Step, Step] + [Decode] * 9
    assert [work.part for work in seen if not isinstance(work, Step)] == [*range(9)] * 2
    assert sum(w.seconds for w in seen[:9]) == pytest.approx(LINEAR.encode_seconds(192 * 192))
    assert sum(w.seconds for w in seen[11:]) == pytest.approx(LINEAR.decode_seconds(192 * 192))
    assert len(scheduler) == 0


def test_a_remembered_picture_needs_no_further_parts() -> None:
    scheduler = Scheduler(LINEAR)
    task = put(scheduler, 7, LARGE)
    work = scheduler.plan()
    assert isinstance(work, Encode)
    assert work.parts == 9
    scheduler.complete(work, last=True)
    assert task.encoded
    assert isinstance(scheduler.plan(), Step)


def test_nothing_is_planned_before_a_request_is_prepared() -> None:
    scheduler = Scheduler(GAINFUL)
    task = put(scheduler, 0)
    task.prepared = False
    assert scheduler.plan() is None
    assert [state.ident for state in scheduler.waiting()] == [0]
    put(scheduler, 1, LARGE, arrived=1.0)
    work = scheduler.plan()
    assert isinstance(work, Encode)
    assert work.ident == 1
    task.prepared = True
    assert run_all(scheduler) in ([0, 1], [1, 0])


# Width


def test_where_rows_gain_requests_share_a_step() -> None:
    scheduler = Scheduler(GAINFUL)
    for ident in range(3):
        put(scheduler, ident, rows=1 + ident % 2)
    for _ in range(3):
        work = scheduler.plan()
        assert isinstance(work, Encode)
        scheduler.complete(work)
    work = scheduler.plan()
    assert isinstance(work, Step)
    assert set(work.idents) == {0, 1, 2}
    assert work.rows == 4


def test_where_rows_gain_nothing_requests_run_to_their_end_as_they_came() -> None:
    scheduler = Scheduler(LINEAR)
    for ident in range(5):
        put(scheduler, ident, arrived=0.1 * ident)
    widths = set()
    finished: list[int] = []
    while (work := scheduler.plan()) is not None:
        if isinstance(work, Step):
            widths.add(len(work.idents))
        finished += scheduler.complete(work)
    assert widths == {1}
    assert finished == [0, 1, 2, 3, 4]


def test_a_bucket_is_filled_where_its_rows_are_paid_for_anyway() -> None:
    scheduler = Scheduler(LINEAR, PolicyConfig(limits=StepLimits(buckets=(8, 16))))
    for ident in range(5):
        put(scheduler, ident)
    while isinstance(work := scheduler.plan(), Encode):
        scheduler.complete(work)
    assert isinstance(work, Step)
    assert (work.rows, work.padded) == (8, 8)


@pytest.mark.parametrize("rows", [1, 2])
def test_with_steps_of_one_request_none_is_shared_and_all_are_padded_alike(rows: int) -> None:
    limits = StepLimits(buckets=(2,), alone=True)
    scheduler = Scheduler(make_program(fixed=100.0), PolicyConfig(limits=limits))
    for ident in range(3):
        put(scheduler, ident, rows=rows)
    steps = []
    while (work := scheduler.plan()) is not None:
        if isinstance(work, Step):
            steps.append((len(work.idents), work.padded))
        scheduler.complete(work)
    assert set(steps) == {(1, 2)}
    assert len(steps) > 3


@given(
    rows=st.lists(st.integers(1, 2), min_size=1, max_size=30),
    key=st.sampled_from(KEYS),
    max_rows=st.integers(2, 32),
    fixed=st.floats(0, 100),
)
def test_a_step_keeps_within_its_limits_and_never_costs_more_than_its_members_alone(
    rows: list[int], key: GroupKey, max_rows: int, fixed: float
) -> None:
    limits = StepLimits(max_rows=max_rows)
    scheduler = Scheduler(make_program(fixed), PolicyConfig(limits=limits))
    for ident, count in enumerate(rows):
        put(scheduler, ident, key, rows=count)
    while isinstance(work := scheduler.plan(), Encode):
        scheduler.complete(work)
    assert isinstance(work, Step)
    assert work.rows == sum(rows[ident] for ident in work.idents) <= limits.rows_for(key)
    alone = sum(
        scheduler.predictions.table.step_seconds(key.latent_pixels, rows[i]) for i in work.idents
    )
    assert work.seconds <= alone * (1 + 1e-9)


@pytest.mark.parametrize("costs", [LINEAR, GAINFUL])
def test_what_is_told_of_a_size_is_what_a_request_of_it_takes_alone(costs: CostTable) -> None:
    scheduler = Scheduler(costs)
    told = costs.by_size()
    assert [cost.pixels for cost in told] == sorted(cost.pixels for cost in told)
    for cost in told:
        side = math.isqrt(cost.pixels) // 8
        task = RequestState(0, GroupKey(side, side, 77, False), rows=2, evaluations=7, arrived=0.0)
        alone = scheduler.predictions.alone(task)
        assert 7 * cost.evaluation + cost.rest == pytest.approx(alone, rel=1e-6)


# Order


def test_a_small_picture_goes_before_a_large_one_and_between_the_parts_of_its_decode() -> None:
    scheduler = Scheduler(LINEAR)
    put(scheduler, 0, LARGE, evaluations=1)
    for _ in range(11):
        work = scheduler.plan()
        assert work is not None
        scheduler.complete(work)
    assert isinstance(scheduler.plan(), Decode)
    put(scheduler, 1, SMALL, evaluations=1, arrived=1.0)
    work = scheduler.plan()
    assert isinstance(work, Encode)
    assert work.ident == 1
    assert run_all(scheduler) == [1, 0]


def test_the_earliest_deadline_goes_first_within_a_size() -> None:
    scheduler = Scheduler(LINEAR, PolicyConfig(slack_factor=1e6))
    for ident, deadline in enumerate((900.0, 300.0, 600.0)):
        put(scheduler, ident, deadline=deadline)
    assert run_all(scheduler) == [1, 2, 0]


def test_a_cap_on_rows_holds_until_the_group_is_gone() -> None:
    def rows_of_first_step(scheduler: Scheduler) -> int:
        for ident in range(8):
            put(scheduler, ident, SMALL)
        while not isinstance(work := scheduler.plan(), Step):
            assert work is not None
            scheduler.complete(work)
        return work.rows

    scheduler = Scheduler(GAINFUL)
    assert rows_of_first_step(scheduler) == 16
    scheduler.cap_rows(SMALL, 6)
    work = scheduler.plan()
    assert isinstance(work, Step)
    assert work.rows == 6
    scheduler.cap_rows(SMALL, 0)
    work = scheduler.plan()
    assert isinstance(work, Step)
    assert work.rows == 2
    run_all(scheduler)
    assert rows_of_first_step(scheduler) == 16


def test_a_cap_on_rows_is_tried_again_while_requests_of_its_size_keep_coming() -> None:
    scheduler, ident, widths = Scheduler(GAINFUL), 0, list[int]()
    while len(widths) < 3 * CAP_STEPS:
        while len(scheduler) < 16:
            put(scheduler, ident, SMALL, evaluations=10)
            ident += 1
        work = scheduler.plan()
        assert work is not None
        scheduler.complete(work)
        if isinstance(work, Step):
            if not widths:
                scheduler.cap_rows(SMALL, 4)
            widths.append(work.rows)
    assert max(widths[1:CAP_STEPS]) == 4
    assert max(widths[CAP_STEPS + 1 : 2 * CAP_STEPS]) == 8
    assert max(widths[2 * CAP_STEPS + 1 :]) == 16


def test_places_are_not_exceeded() -> None:
    scheduler = Scheduler(GAINFUL, PolicyConfig(max_places=2))
    tasks = [put(scheduler, ident, KEYS[ident % 3]) for ident in range(9)]
    while (work := scheduler.plan()) is not None:
        scheduler.complete(work)
        assert sum(task.holds_place for task in tasks if task.ident in scheduler) <= 2
    assert len(scheduler) == 0


def test_a_removed_request_does_not_come_back() -> None:
    scheduler = Scheduler(GAINFUL)
    for ident in range(3):
        put(scheduler, ident)
    work = scheduler.plan()
    scheduler.remove(0)
    scheduler.remove(0)
    assert work is not None
    assert scheduler.complete(work) == []
    assert sorted(run_all(scheduler)) == [1, 2]


# Admission


def test_a_full_queue_refuses_until_its_work_is_done() -> None:
    scheduler = Scheduler(LINEAR, PolicyConfig(max_queue=2))
    work = sum(scheduler.predictions.alone(put(scheduler, ident)) for ident in range(2))
    refusal = scheduler.offer(RequestState(2, MEDIUM, 2, 3, 0.0), 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after == pytest.approx(work)
    assert len(scheduler) == 2


def offer_batch(
    scheduler: Scheduler, count: int, allowed: float = 1e6, spent: float = 0.0, sooner: float = 0.0
) -> list[object]:
    """Offer requests that were asked for together, and return what was said of each.

    Of their time ``spent`` has gone by; the deadline of each is as much ``sooner`` than the last's.
    """
    first = 100 + len(scheduler)
    tasks = [
        RequestState(
            first + i, MEDIUM, 2, 3, 0.0, allowed - spent - i * sooner, allowed=allowed, batch="one"
        )
        for i in range(count)
    ]
    return [scheduler.offer(task, 0.0) for task in tasks]


@pytest.mark.parametrize("sooner", [0.0, 1e-3])
@pytest.mark.parametrize(("before", "spent", "taken"), [(0, 0.0, 3), (0, 0.6, 2), (1, 0.0, 2)])
def test_a_batch_that_alone_takes_too_long_is_told_so(
    before: int, spent: float, taken: int, sooner: float
) -> None:
    """Also where a replica counts the time of each from when it has come there. What has gone by of
    it may not have next time."""
    scheduler = Scheduler(LINEAR)
    alone = scheduler.predictions.alone(RequestState(0, MEDIUM, 2, 3, 0.0))
    for ident in range(before):
        put(scheduler, ident, deadline=1.2 * alone)
    *told, last = offer_batch(scheduler, taken + 1, 3.5 * alone, spent * alone, sooner)
    assert told == [None] * taken
    assert isinstance(last, Refusal)
    assert last.together is (before == 0 and not spent)


@pytest.mark.parametrize("before", [0, 1])
def test_a_batch_over_the_whole_queue_is_told_so(before: int) -> None:
    scheduler = Scheduler(LINEAR, PolicyConfig(max_queue=3))
    for ident in range(before):
        put(scheduler, ident)
    *told, last = offer_batch(scheduler, 4 - before)
    assert told == [None] * (3 - before)
    assert isinstance(last, Refusal)
    assert last.together is (before == 0)


def test_what_cannot_meet_its_deadline_is_refused() -> None:
    scheduler = Scheduler(LINEAR, PolicyConfig(slack_factor=0.0))
    alone = scheduler.predictions.alone(put(scheduler, 0))
    late = RequestState(1, MEDIUM, 2, 3, 0.0, deadline=1.5 * alone)
    refusal = scheduler.offer(late, 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after == pytest.approx(0.5 * alone)
    assert scheduler.offer(RequestState(2, MEDIUM, 2, 3, 0.0, deadline=2.1 * alone), 0.0) is None
    assert [state.ident for state in scheduler if state.lost(2.2 * alone)] == [2]


def test_retrying_is_not_put_off_beyond_the_end_of_the_queue() -> None:
    """Of 100 s the upload took 90: what is late by more than the queue holds gains by no wait."""
    scheduler = Scheduler(LINEAR, PolicyConfig(slack_factor=0.0))
    alone = scheduler.predictions.alone(put(scheduler, 0))
    late = RequestState(1, MEDIUM, 2, 3, 90.0, deadline=90.0 + 0.1 * alone, allowed=10.0 * alone)
    refusal = scheduler.offer(late, 90.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after == pytest.approx(alone)


def serve(
    scheduler: Scheduler, coming: Sequence[RequestState], slowness: float = 1.0
) -> tuple[list[int], list[int], list[int]]:
    """Serve all on a clock of their own: who is done, who expired and who was refused.

    The device takes ``slowness`` times the predicted seconds.
    """
    clock = 0.0
    done: list[int] = []
    expired: list[int] = []
    refused: list[int] = []
    waiting = list(coming)
    while waiting or len(scheduler):
        if not len(scheduler):
            clock = max(clock, waiting[0].arrived)
        while waiting and waiting[0].arrived <= clock:
            task = waiting.pop(0)
            if scheduler.offer(task, clock) is not None:
                refused.append(task.ident)
        for task in scheduler:
            if task.lost(clock):
                scheduler.remove(task.ident)
                expired.append(task.ident)
        if (work := scheduler.plan(clock)) is not None:
            clock += slowness * work.seconds
            done += scheduler.complete(work)
    return done, expired, refused


@pytest.mark.parametrize("slowness", [1.0, 1.05])
@pytest.mark.parametrize("share", [0.15, 0.3, 0.45])
def test_a_large_one_is_done_though_small_ones_keep_the_device_busy(
    share: float, slowness: float
) -> None:
    """Due at its deadline, it was passed until there was no time left for it."""
    limit = 300.0
    one = Scheduler(LINEAR).predictions.alone(RequestState(0, MEDIUM, 2, 1, 0.0))
    evaluations = round(share * limit / LINEAR.step_seconds(LARGE.latent_pixels, 2))
    coming = [RequestState(0, LARGE, 2, evaluations, 0.0, deadline=limit)]
    for ident in range(1, round(limit / one)):
        at = one * ident
        coming.append(RequestState(ident, MEDIUM, 2, 1, at, deadline=at + limit))
    done, expired, refused = serve(
        Scheduler(LINEAR, PolicyConfig(max_queue=1000)), coming, slowness
    )
    assert 0 in done
    assert not expired
    assert not refused


@pytest.mark.parametrize("seed", range(5))
def test_what_is_taken_is_done_in_time_and_what_would_hinder_it_is_refused(seed: int) -> None:
    """A quarter more work than the device can do, of requests that may take from a tenth of their
    time to most of it: those due at once may not take what others were promised."""
    rng = random.Random(seed)
    scheduler = Scheduler(LINEAR, PolicyConfig(max_queue=1000))
    coming, at = [], 0.0
    for ident in range(150):
        key = rng.choice(KEYS)
        task = RequestState(ident, key, 2, rng.randint(1, 6), at)
        seconds = scheduler.predictions.alone(task)
        coming.append(replace(task, deadline=at + rng.choice((10.0, 4.0, 1.5)) * seconds))
        at += rng.expovariate(1.25 / seconds)
    done, expired, refused = serve(scheduler, coming)
    assert len(expired) <= 1  # by a mate's decode, which comes before any step of its size
    assert len(done) > len(refused) > 0


def test_what_another_engine_had_taken_is_not_refused_for_the_sake_of_others() -> None:
    for taken in (False, True):
        scheduler = Scheduler(LINEAR)
        large = RequestState(0, LARGE, 2, 3, 0.0)
        seconds = scheduler.predictions.alone(large)
        assert scheduler.offer(replace(large, deadline=1.16 * seconds), 0.0) is None
        small = RequestState(1, MEDIUM, 2, 30, 0.0, deadline=100 * seconds, taken=taken)
        scheduler.config = replace(scheduler.config, slack_factor=0.0)  # due at once
        refusal = scheduler.offer(small, 0.0)
        assert (refusal is None) is taken


def test_one_that_goes_apart_shares_no_step() -> None:
    """Whether it leads or another does, and its mates go on together."""
    scheduler = Scheduler(GAINFUL)
    tasks = [put(scheduler, ident) for ident in range(4)]
    while isinstance(work := scheduler.plan(), Encode):
        scheduler.complete(work)
    tasks[0].apart = tasks[2].apart = True
    shared = []
    while (work := scheduler.plan()) is not None:
        if isinstance(work, Step) and work.idents not in shared:
            shared.append(work.idents)
        scheduler.complete(work)
    assert shared == [(0,), (1, 3), (2,)]


def test_what_another_engine_had_taken_has_as_much_room_again() -> None:
    scheduler = Scheduler(LINEAR, PolicyConfig(max_queue=2))
    for ident in range(2):
        put(scheduler, ident)
    more = [RequestState(ident, MEDIUM, 2, 3, 0.0, taken=True) for ident in range(2, 5)]
    taken = [scheduler.offer(task, 0.0) is None for task in more]
    assert taken == [True, True, False], "memory is for twice the queue"
    assert isinstance(scheduler.offer(RequestState(5, MEDIUM, 2, 3, 0.0), 0.0), Refusal)


# Too long for its limit


def too_long(ident: int, scheduler: Scheduler, at: float, limit: float = 60.0) -> RequestState:
    """A request that alone takes about a minute and a half, and may take one."""
    task = RequestState(ident, MEDIUM, 2, 45, at, deadline=at + limit)
    assert scheduler.predictions.alone(task) == pytest.approx(91.2, abs=0.1)
    return task


def test_what_takes_too_long_in_itself_is_refused_but_for_one_a_minute() -> None:
    scheduler = Scheduler(LINEAR)
    assert scheduler.offer(too_long(0, scheduler, 5.0), 5.0) is None
    scheduler.remove(0)
    for ident, at in enumerate((5.0, 30.0, 64.9), 1):
        refusal = scheduler.offer(too_long(ident, scheduler, at), at)
        assert isinstance(refusal, TooLong)
        assert refusal.seconds == pytest.approx(91.2, abs=0.1)
        assert refusal.allowed == pytest.approx(60.0)
    assert scheduler.offer(too_long(4, scheduler, 65.0), 65.0) is None


def test_one_that_takes_too_long_is_tried_at_a_time_and_only_if_its_turn_would_come() -> None:
    scheduler = Scheduler(LINEAR)
    assert scheduler.offer(too_long(0, scheduler, 0.0), 0.0) is None
    assert isinstance(scheduler.offer(too_long(1, scheduler, 200.0), 200.0), TooLong)
    scheduler.remove(0)
    put(scheduler, 2, evaluations=40, arrived=190.0)
    assert isinstance(scheduler.offer(too_long(3, scheduler, 200.0), 200.0), TooLong)
    scheduler.remove(2)
    assert scheduler.offer(too_long(4, scheduler, 200.0), 200.0) is None


def test_one_that_takes_too_long_goes_behind_all_others() -> None:
    scheduler = Scheduler(LINEAR)
    assert scheduler.offer(too_long(0, scheduler, 0.0), 0.0) is None
    put(scheduler, 1, LARGE, evaluations=2, arrived=1.0, deadline=61.0)
    assert run_all(scheduler) == [1, 0]


def test_a_table_that_is_wrong_heals_by_what_is_let_through() -> None:
    scheduler = Scheduler(make_program(0.0, per_row=100.0))
    for minute in range(20):
        task = RequestState(minute, MEDIUM, 2, 10, 60.0 * minute, deadline=60.0 * minute + 60.0)
        assert scheduler.offer(task, task.arrived) is None
        while (work := scheduler.plan()) is not None:
            scheduler.complete(work, 1.0 if isinstance(work, Step) else work.seconds)
        if scheduler.predictions.alone(RequestState(-1, MEDIUM, 2, 10, 0.0)) < 60.0:
            break
    assert 2 <= minute <= 6


def test_one_unit_that_hung_does_not_make_others_too_long() -> None:
    scheduler = Scheduler(LINEAR)
    put(scheduler, 0)
    before = scheduler.predictions.table.step_seconds(4096, 2)
    while not isinstance(work := scheduler.plan(), Step):
        assert work is not None
        scheduler.complete(work)
    scheduler.complete(work, 3600.0)
    assert before < scheduler.predictions.table.step_seconds(4096, 2) < 1.5 * before


def test_time_spent_before_it_came_makes_no_request_too_long() -> None:
    scheduler = Scheduler(LINEAR)
    alone = scheduler.predictions.alone(RequestState(0, MEDIUM, 2, 3, 0.0))
    task = RequestState(0, MEDIUM, 2, 3, 0.0, deadline=0.5 * alone, allowed=2.0 * alone)
    assert isinstance(scheduler.offer(task, 0.0), Refusal)


# CLIP guidance


def test_guidance_is_predicted_and_learned_by_preset() -> None:
    scheduler = Scheduler(LINEAR)
    slow = ClipGuidancePreset.SLOW
    task = RequestState(0, MEDIUM, 2, 30, 0.0, guidance=slow)
    plain = RequestState(1, MEDIUM, 2, 30, 0.0)
    denoising = 30 * scheduler.predictions.table.step_seconds(4096, 2)
    added = scheduler.predictions.alone(task) - scheduler.predictions.alone(plain)
    assert added == pytest.approx(MEASURED[slow] * denoising)
    assert scheduler.offer(task, 0.0) is None
    before = scheduler.predictions.table.to_json()
    while (work := scheduler.plan()) is not None:
        if isinstance(work, Step):
            alone = scheduler.predictions.table.step_seconds(4096, 2)
            assert work.seconds == pytest.approx(
                (1 + scheduler.predictions.guidance.ratio(slow)) * alone
            )
            scheduler.complete(work, 9.0 * alone)
        else:
            scheduler.complete(work)
    assert scheduler.predictions.guidance.ratio(slow) == pytest.approx(8.0, rel=0.05)
    assert (
        scheduler.predictions.guidance.ratio(ClipGuidancePreset.SLOWER)
        == MEASURED[ClipGuidancePreset.SLOWER]
    )
    assert scheduler.predictions.table.to_json() == before


# No starvation


@given(
    victim=st.sampled_from(KEYS),
    stream=st.lists(
        st.tuples(st.sampled_from(KEYS), st.integers(1, 2), st.integers(1, 4)),
        min_size=1,
        max_size=6,
    ),
    fixed=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_nobody_starves(
    victim: GroupKey,
    stream: list[tuple[GroupKey, int, int]],
    fixed: float,
) -> None:
    """However fast others come, a request ends within its slack and a shared queue of work.

    Until its due time anything may pass it. After that only what is due before it does, which is
    at most a queue full. Every evaluation of those may be shared by a step full of mates.
    """
    config = PolicyConfig(max_queue=8)
    scheduler = Scheduler(make_program(fixed), config)
    target = put(scheduler, 0, victim)
    costliest = scheduler.predictions.alone(RequestState(-1, LARGE, 2, 4, 0.0))
    queue_full = config.max_queue * costliest
    width = config.limits.max_rows
    bound = target.due + width * queue_full
    clock, ident = 0.0, 1
    while target.ident in scheduler:
        # The stream keeps the queue full at all times.
        while len(scheduler) < config.max_queue:
            key, rows, evaluations = stream[ident % len(stream)]
            assert (
                scheduler.offer(RequestState(ident, key, rows, evaluations, clock), clock) is None
            )
            ident += 1
        work = scheduler.plan()
        assert work is not None
        clock += work.seconds
        scheduler.complete(work)
        assert clock <= bound
    assert math.isfinite(clock)


@given(
    arrivals=st.lists(
        st.tuples(
            st.floats(0.0, 20.0),  # seconds after the one before it
            st.sampled_from(KEYS),
            st.integers(1, 2),
            st.integers(1, 6),
            st.none() | st.floats(1.01, 3.0),  # its deadline, in times of its predicted wait
        ),
        min_size=2,
        max_size=40,
    ),
    fixed=st.sampled_from([0.0, 1.0, 10.0]),
    max_rows=st.sampled_from([2, 4, 16]),
    max_places=st.sampled_from([2, 64]),
)
def test_every_admitted_request_ends_within_a_bound_behind_its_due_time(
    arrivals: list[tuple[float, GroupKey, int, int, float | None]],
    fixed: float,
    max_rows: int,
    max_places: int,
) -> None:
    """What is left to do at a request's due time and is due before it bounds its wait.

    Each evaluation of that may be shared by a step full of mates, each encoded and decoded once.
    Where places are few, every request before it may meet them taken by later ones. A deadline may
    be refused: those before a request may be sharing less than all do, which the backlog tells. So
    may what would make another miss its own.
    """
    config = PolicyConfig(limits=StepLimits(max_rows=max_rows), max_places=max_places)
    scheduler = Scheduler(make_program(fixed), config)

    def shared(task: RequestState) -> float:
        one = RequestState(-1, task.key, task.rows, 1, 0.0)
        return max_rows * task.evaluations * scheduler.predictions.alone(one)

    costliest = shared(RequestState(-1, LARGE, 2, 6, 0.0))
    clock, at = 0.0, 0.0
    coming: list[tuple[float, RequestState, float | None]] = []
    for ident, (gap, key, rows, evaluations, patience) in enumerate(arrivals):
        at += gap
        coming.append((at, RequestState(ident, key, rows, evaluations, at), patience))
    present: dict[int, RequestState] = {}
    bounds: dict[int, float] = {}
    admitted: list[int] = []
    ended: list[int] = []
    while coming or present:
        if not present:
            clock = max(clock, coming[0][0])
        while coming and coming[0][0] <= clock:
            at, task, patience = coming.pop(0)
            if patience is not None:
                wait = scheduler.backlog_seconds() + scheduler.predictions.alone(task)
                task = replace(task, deadline=clock + patience * wait)
            refusal = scheduler.offer(task, clock)
            if refusal is None:
                present[task.ident] = task
                admitted.append(task.ident)
            else:
                promised = any(other.deadline is not None for other in present.values())
                assert promised or task.deadline is not None, refusal
        for task in present.values():
            if task.ident not in bounds and task.due <= clock:
                before = [
                    t for t in present.values() if (t.due, t.arrived) <= (task.due, task.arrived)
                ]
                taken = max_places * costliest if max_places < len(arrivals) else 0.0
                bounds[task.ident] = clock + sum(shared(t) + taken for t in before)
        work = scheduler.plan(clock)
        assert work is not None
        clock += work.seconds
        for ident in scheduler.complete(work):
            del present[ident]
            ended.append(ident)
            assert clock <= bounds.get(ident, math.inf) + 1e-6
    assert sorted(ended) == admitted


@pytest.mark.parametrize(
    ("chunks", "rows"), [(1, 16), (2, 16), (3, 15), (8, 11), (40, 5), (107, 2)]
)
def test_the_tokens_of_a_long_text_take_room_in_a_step(chunks: int, rows: int) -> None:
    """107 are the most of a valid text: at 16 rows their keys and values were 6.6 GB."""
    key = GroupKey(64, 64, chunks * 77, False)
    assert StepLimits(16, 16 * 64 * 64).rows_for(key) == rows


@pytest.mark.parametrize(
    ("max_pixels", "rows"), [(16, 16), (15, 8), (7, 4), (2, 2), (1, 2), (0, 2)]
)
def test_padding_counts(max_pixels: int, rows: int) -> None:
    key = GroupKey(8, 8, 77, False)
    limits = StepLimits(max_rows=32, max_pixels=max_pixels * 64, buckets=(1, 2, 4, 8, 16))
    assert limits.rows_for(key) == rows
    assert StepLimits(32, 7 * 64).rows_for(key) == 7


# Decodes that are shared


def denoised(scheduler: Scheduler, key: GroupKey, deadlines: Sequence[float | None]) -> None:
    """Requests that all wait for nothing but their decode."""
    for ident, deadline in enumerate(deadlines):
        task = RequestState(ident, key, rows=2, evaluations=1, arrived=0.0, deadline=deadline)
        assert scheduler.offer(task, 0.0) is None
        task.encoded, task.done, task.encode_parts_done = True, 1, 1


def decoded_together(deadlines: Sequence[float | None], now: float | None, **options: Any) -> int:
    """How many share the next decode."""
    key = options.pop("key", MEDIUM)
    config = PolicyConfig(**{"shared_decodes": (2, 4)} | options)
    scheduler = Scheduler(LINEAR, config)
    denoised(scheduler, key, deadlines)
    work = scheduler.plan(now)
    assert isinstance(work, Decode)
    assert work.idents[0] == work.ident
    alone = LINEAR.decode_seconds(key.latent_pixels) / work.parts
    assert work.seconds == pytest.approx(len(work.idents) * alone)
    finished = scheduler.complete(work)
    assert finished == (list(work.idents) if work.parts == 1 else [])
    assert len(scheduler) == len(deadlines) - len(finished)
    return len(work.idents)


@pytest.mark.parametrize(("waiting", "shared"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4)])
def test_decodes_that_wait_share_one(waiting: int, shared: int) -> None:
    assert decoded_together([None] * waiting, None) == shared


def test_no_decode_is_shared_unasked_in_parts_or_with_circular_padding() -> None:
    assert decoded_together([None] * 4, 0.0, shared_decodes=()) == 1
    assert decoded_together([None] * 4, 0.0, key=LARGE) == 1
    assert decoded_together([None] * 4, 0.0, key=replace(MEDIUM, tile=True)) == 1


def test_nobody_misses_a_deadline_by_sharing_a_decode() -> None:
    one = LINEAR.decode_seconds(MEDIUM.latent_pixels)
    roomy, two_fit = 1e6, 1e3 + 2.5 * one
    assert decoded_together([roomy] * 4, 1e3) == 4
    assert decoded_together([two_fit, roomy, roomy, roomy], 1e3) == 2
    assert decoded_together([1e3 + 1.5 * one, roomy, roomy, roomy], 1e3) == 1
    assert decoded_together([roomy] * 4, None) == 1  # nobody knows how late it is


def test_a_shared_decode_does_not_teach_what_one_costs() -> None:
    scheduler = Scheduler(replace(LINEAR), PolicyConfig(shared_decodes=(2,)))
    denoised(scheduler, MEDIUM, [None, None])
    before = scheduler.predictions.table.decode_seconds(MEDIUM.latent_pixels)
    work = scheduler.plan()
    assert work is not None
    scheduler.complete(work, 1e-3)
    assert scheduler.predictions.table.decode_seconds(MEDIUM.latent_pixels) == before


def test_what_is_left_is_predicted_as_the_steps_are_shared() -> None:
    """A step of n rows takes 10 + n seconds here; four rows are shared by two requests."""
    scheduler = Scheduler(GAINFUL)
    tasks = [put(scheduler, ident, evaluations=3) for ident in (1, 2)]
    decode = 4096 * 2e-4
    seconds = scheduler.seconds_to_pictures()
    assert (
        seconds[1]
        == scheduler.predictions.alone(tasks[0])
        == pytest.approx(3 * 12 + 4096 * 1e-4 + decode)
    )
    assert seconds[2] == pytest.approx(3 * 14 + 2 * (4096 * 1e-4 + decode))
    while not isinstance(work := scheduler.plan(), Step):
        assert work is not None
        scheduler.complete(work)
    assert work.idents == (1, 2)
    assert scheduler.seconds_left(work) == pytest.approx(dict.fromkeys((1, 2), 3 * 14 + decode))
    scheduler.complete(work)
    assert scheduler.seconds_left(work) == pytest.approx(dict.fromkeys((1, 2), 2 * 14 + decode))


def test_what_is_leaving_is_predicted_no_more() -> None:
    """On a card its last unit runs, or its failure is not collected yet, when others come."""
    scheduler = Scheduler(GAINFUL)
    put(scheduler, 0, SMALL, evaluations=1)
    ending: list[int] = []
    while (work := scheduler.plan()) is not None:
        ending += scheduler.advance(work)
    put(scheduler, 1, MEDIUM)
    work = scheduler.plan()
    assert work is not None
    ending += scheduler.advance(work, failed=(1,))
    assert ending == [0]
    task = put(scheduler, 2, LARGE)
    assert [state.ident for state in scheduler.waiting()] == [2]
    assert scheduler.seconds_to_pictures() == {2: scheduler.predictions.alone(task)}
