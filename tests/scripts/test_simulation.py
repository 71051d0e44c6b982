"""The load simulator: its traces, its servers and what it measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from pipelines.request import CONTRACT_SAMPLERS, Sampler
from pipelines.samplers.programs import make_program
from pipelines.scheduler.batching import GroupKey
from pipelines.scheduler.scheduler import PolicyConfig
from scripts.benchmarks.simulation import fleet, measures, sizing, tables, traces
from scripts.benchmarks.simulation.__main__ import main
from scripts.benchmarks.simulation.servers import (
    Jitter,
    alone_seconds,
    serve_by_policy,
    serve_one_at_a_time,
    serve_request_batches,
)
from scripts.benchmarks.simulation.traces import Arrival

KEY = GroupKey(64, 64, 77, False)
PATIENT = PolicyConfig(max_queue=10**9)


def arrivals(*times: float, steps: int = 10) -> list[Arrival]:
    recipe = (Sampler.K_EULER, steps, steps, 7.0)
    return [Arrival(i, at, KEY, 2, steps, recipe) for i, at in enumerate(times)]


@pytest.mark.parametrize("sampler", list(CONTRACT_SAMPLERS))
@pytest.mark.parametrize(("steps", "strength"), [(10, 0.95), (30, 0.35), (17, 0.0)])
def test_evaluations_are_the_length_of_the_table(
    sampler: Sampler, steps: int, strength: float
) -> None:
    expected = len(make_program(sampler, steps, strength))
    assert traces.evaluations(sampler, steps, strength) == expected


@pytest.mark.parametrize("name", list(traces.ARRIVALS))
def test_traces_are_seeded_and_come_at_their_rate(name: str) -> None:
    mix = traces.MIXES["mixed"]
    trace = traces.make_trace(mix, name, 4000, seed=3)
    assert trace == traces.make_trace(mix, name, 4000, seed=3)
    assert trace[-1].at == pytest.approx(4000, rel=0.15)
    assert len({a.key for a in trace}) > 15
    assert all(40 <= side <= 192 for a in trace for side in (a.key.height, a.key.width))


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_the_files_are_what_makes_them(name: str) -> None:
    table = tables.load_table(name)
    assert table.to_json() == tables.TABLES[name]().to_json()
    assert table.provenance.source


def test_the_h200_table_gives_back_what_was_measured() -> None:
    table = tables.load_table("h200")

    def row_milliseconds(pixels: int, rows: int) -> float:
        return 1000 * (table.step_seconds(pixels, rows) - table.step_overhead) / rows

    # With flash attention, less what cuDNN's takes less at that many rows.
    assert row_milliseconds(4096, 2) == pytest.approx(3.48 - 0.375)
    assert row_milliseconds(4096, 8) == pytest.approx(2.52 - 0.375 + 6 / 14 * 0.022)
    assert row_milliseconds(4096, 16) == pytest.approx(2.47 - 0.353)
    assert row_milliseconds(4096, 32) == pytest.approx(2.39 - 0.353)
    # Beyond 32 rows of 512 x 512 in arithmetic, each has the cost of the last ones.
    last = 2 * (2.39 - 0.353) - (2.47 - 0.353)
    share = tables.unet_teraflop(36864) / tables.unet_teraflop(4096)
    more = row_milliseconds(36864, 32) * 32 - row_milliseconds(36864, 16) * 16
    assert more == pytest.approx(16 * share * last)
    assert table.encode_seconds(4096) == pytest.approx(0.0048)
    assert table.decode_seconds(4096) == pytest.approx(0.0088)


def test_the_servers_on_two_requests() -> None:
    table = tables.linear(0.01)
    alone = alone_seconds(table, arrivals(0.0)[0], PATIENT)
    queued = serve_one_at_a_time(table, arrivals(0.0, 0.0), PATIENT)
    assert queued.latencies == pytest.approx([alone, 2 * alone])
    batched = serve_request_batches(table, arrivals(0.0, 0.0), PATIENT)
    assert batched.latencies == pytest.approx([2 * alone, 2 * alone])
    assert batched.rows_per_step == 4
    ours = serve_by_policy(table, arrivals(0.0, 0.0), PATIENT)
    assert ours.latencies == pytest.approx([alone, 2 * alone])


def test_a_full_queue_refuses() -> None:
    config = PolicyConfig(max_queue=2)
    for server in (serve_one_at_a_time, serve_request_batches, serve_by_policy):
        outcome = server(tables.linear(), arrivals(0.0, 0.01, 0.02, 0.03), config)
        assert [math.isinf(latency) for latency in outcome.latencies] == [False] * 2 + [True] * 2


def test_requests_that_differ_batch_by_steps_only() -> None:
    table = tables.load_table("h200")
    trace = arrivals(*[0.0] * 8)
    trace = [replace(a, recipe=(Sampler.DDIM, a.ident, 10, 7.0)) for a in trace]
    assert serve_request_batches(table, trace, PATIENT).rows_per_step == 2
    ours = serve_by_policy(table, trace, PATIENT)
    assert ours.rows_per_step == 16
    passes = table.encode_seconds(4096) + table.decode_seconds(4096)
    assert ours.busy == pytest.approx(10 * table.step_seconds(4096, 16) + 8 * passes)
    assert ours.busy < serve_one_at_a_time(table, trace, PATIENT).busy


@pytest.mark.parametrize("name", list(tables.TABLES))
@pytest.mark.parametrize(("load", "seeds"), [(0.03, range(1, 6)), (0.4, [1]), (0.9, [1])])
def test_p95_slowdown_and_mean_latency_are_no_worse_than_one_at_a_time(
    name: str, load: float, seeds: Sequence[int]
) -> None:
    """Where next to nobody waits, one trace's p95 is a matter of luck: the mean of five is not."""
    table = tables.load_table(name)
    slowdowns, latencies = [0.0, 0.0], [0.0, 0.0]
    for seed in seeds:
        trace = traces.make_trace(traces.MIXES["mixed"], "poisson", 300, seed=seed)
        bench = measures.Bench(table, trace, PATIENT)
        for i, server in enumerate((serve_by_policy, serve_one_at_a_time)):
            point = bench.point(server, load * bench.capacity)
            slowdowns[i] += point.slowdown
            # The p95 of 300 latencies in seconds hangs on a dozen large images: the mean does not.
            latencies[i] += sum(point.outcome.latencies)
    assert slowdowns[0] <= 1.02 * slowdowns[1]
    assert latencies[0] <= 1.02 * latencies[1]


@pytest.mark.slow("benchmarks")
@pytest.mark.parametrize("name", list(tables.TABLES))
def test_times_that_jitter_do_not_mislead_the_policy(name: str) -> None:
    """It learns from them: p95 stays near that of a device whose times are what they should be."""
    table = tables.load_table(name)
    trace = traces.make_trace(traces.MIXES["mixed"], "poisson", 300, seed=1)
    bench = measures.Bench(table, trace, PATIENT)
    steady = bench.point(serve_by_policy, 0.8 * bench.capacity)
    jittering = bench.point(
        partial(serve_by_policy, jitter=Jitter(0.2, seed=1)), 0.8 * bench.capacity
    )
    assert jittering.slowdown <= 1.5 * steady.slowdown


@pytest.mark.parametrize("slack_factor", [8.0, 32.0])
def test_saturation_comes_near_the_ceiling_and_never_above(slack_factor: float) -> None:
    """Nor where large requests are put off to the end."""
    trace = traces.make_trace(traces.MIXES["mixed"], "poisson", 400, seed=2)
    config = PolicyConfig(slack_factor=slack_factor)
    bench = measures.Bench(tables.load_table("h200"), trace, config)
    ratio, outcome = measures.saturated_by_policy(bench)
    assert outcome.rows_per_step > 3
    assert outcome.finished == len(trace)
    assert 0.9 * bench.ceiling < ratio <= bench.ceiling
    assert ratio > measures.saturated_by_request_batches(bench)


def test_a_linear_table_allows_no_gain() -> None:
    trace = traces.make_trace(traces.MIXES["mixed"], "poisson", 100, seed=2)
    bench = measures.Bench(tables.load_table("linear"), trace, PolicyConfig())
    assert bench.ceiling == pytest.approx(1.0)


def test_goodput_is_the_last_rate_within_the_limit() -> None:
    trace = traces.make_trace(traces.MIXES["default"], "poisson", 300, seed=2)
    bench = measures.Bench(tables.load_table("linear"), trace, PolicyConfig())
    point = bench.goodput(serve_one_at_a_time, 3.0)
    assert point is not None
    assert point.slowdown <= 3.0
    assert bench.point(serve_one_at_a_time, 1.04 * point.rate).slowdown > 3.0


def test_a_fleet_serves_everyone_at_a_rate_it_can_bear() -> None:
    mix = traces.MIXES["default"]
    trace = traces.at_rate(traces.make_trace(mix, "poisson", 120, seed=4), 20.0)
    result = fleet.serve_by_fleet(tables.load_table("h200"), trace, PolicyConfig(), 5)
    assert result.refused == 0
    assert result.slowdown < 3.0


@pytest.mark.slow("benchmarks")
def test_a_router_that_looks_needs_fewer_cards_than_one_that_does_not() -> None:
    trace = traces.make_trace(traces.MIXES["default"], "poisson", 400, seed=4)
    table, config = tables.load_table("h200"), PolicyConfig()
    bench = measures.Bench(table, trace, config)
    most = sizing.saturated_rate(bench)
    assert most == pytest.approx(bench.capacity * bench.ceiling, rel=0.05)
    blind, two, best = (
        sizing.cards_needed(table, traces.at_rate(trace, 4 * most), config, 4, 0.6, choices)
        for choices in (1, 2, None)
    )
    assert 4 < best <= two <= blind
    enough = fleet.serve_by_fleet(
        table, traces.at_rate(trace, 4 * most), config, best, choices=best
    )
    assert enough.refused == 0 and enough.seconds <= 0.6


def test_a_longer_queue_refuses_as_many_and_makes_them_wait() -> None:
    trace = traces.make_trace(traces.MIXES["default"], "poisson", 400, seed=4)
    bench = measures.Bench(tables.load_table("h200"), trace, PolicyConfig())
    most = sizing.saturated_rate(bench)
    short, long = sizing.queues(bench, 1.5 * most, (8, 64)).values()
    assert short.p95 < 0.25 * long.p95
    assert short.served > 0.9 * most
    idle = sizing.one_card(bench, 0.3 * most)
    assert idle.refused == 0 and idle.backlog < 0.1 < long.backlog


@pytest.mark.parametrize(
    ("options", "columns", "rows"),
    [
        ([], 7, 3),
        (["--never-worse", "--seeds", "2", "--jitter", "0.1", "--loads", "0.1", "0.8"], 6, 2),
        (["--settings", "--seeds", "2", "--loads", "0.8"], 3, 17),
        (["--replicas", "10", "--rate", "50", "--seconds", "0.5"], 8, 2),
    ],
)
def test_it_prints_tables_of_markdown(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    columns: int,
    rows: int,
) -> None:
    monkeypatch.setattr("sys.argv", ["simulate_load", "--count", "30", *options])
    main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {columns + 1}
    heads = sum(line.startswith("|---") for line in lines)
    assert len(lines) == 2 * heads + rows
