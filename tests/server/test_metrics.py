"""`/metrics`: where it is, what it counts, and that no client can make it grow."""

from __future__ import annotations

import asyncio
import random
import string
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from pipelines.counts import Distribution, GraphCounts
from pipelines.engine.statistics import EngineSnapshot, EngineStatistics
from pipelines.errors import DeadlineExceeded, GenerationCancelled, GenerationFailed
from pipelines.request import ClipGuidancePreset
from pipelines.scheduler.batching import GroupKey
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.work import Encode, Step
from pipelines.timeline import Timeline
from server.http.listening import close, listen
from server.observability.metrics import Metrics
from server.observability.metrics_listener import MOST_CONNECTIONS, MetricsListener
from server.observability.request_record import ALL_APIS, ALL_OUTCOMES
from server.serve import DrainingServer, serve
from server.settings import Settings
from tests.server.conftest import PATH, MakeClient
from tests.server.stub_engine import StubEngine

Series = dict[str, float]


def series(text: str) -> Series:
    """Every sample by its name and labels."""
    return {
        f"{sample.name}{sorted(sample.labels.items()) or ''}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(client: TestClient) -> Series:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return series(response.text)


def ask(client: TestClient, picture_file: bytes, **headers: str) -> int:
    files = {"init_image": ("a.png", picture_file)}
    return client.post(PATH, data={"prompt": "a cat"}, files=files, headers=headers).status_code


# Where it is


@pytest.mark.parametrize(
    ("settings", "on_api", "apart"),
    [
        ({}, True, False),
        ({"host": "0.0.0.0"}, False, False),
        ({"host": "0.0.0.0", "metrics": "on"}, True, False),
        ({"host": "0.0.0.0", "metrics_port": 9464}, False, True),
        ({"metrics_port": 9464}, False, True),
        ({"metrics": "on", "metrics_port": 9464}, True, True),
        ({"metrics": "off", "metrics_port": 9464}, False, False),
        ({"metrics": "OFF"}, False, False),
        ({"metrics": "true", "host": "0.0.0.0"}, True, False),
    ],
)
def test_where_metrics_are(settings: dict[str, object], on_api: bool, apart: bool) -> None:
    chosen = Settings(**settings)
    assert (chosen.metrics_on_api, chosen.metrics_listen) == (on_api, apart)
    assert chosen.measures is (on_api or apart)


def test_a_public_listener_has_none_unless_told_to(make_client: MakeClient) -> None:
    assert make_client(host="0.0.0.0", no_auth=True).get("/metrics").status_code == 404
    assert make_client(host="0.0.0.0", no_auth=True, metrics="on").get("/metrics").is_success


@pytest.fixture
def listener(engine: StubEngine) -> Iterator[str]:
    """The address of a listener of its own."""
    engine.start()
    sockets = listen("127.0.0.1", 0)
    listener = MetricsListener(Metrics(lambda: engine.starter()(Settings())), sockets)
    listener.start()
    yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    listener.close()
    close(sockets)


def test_a_port_of_its_own(listener: str) -> None:
    assert series(requests.get(f"{listener}/metrics", timeout=10).text)["img2img:ready"] == 1
    for accept in (
        # As Prometheus asks: the names have their colons all the same.
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "application/openmetrics-text; version=~.x",
    ):
        answer = requests.get(f"{listener}/metrics", headers={"Accept": accept}, timeout=10)
        assert series(answer.text)["img2img:ready"] == 1
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert requests.get(f"{listener}/else", timeout=10).status_code == 404
    assert requests.post(f"{listener}/metrics", timeout=10).status_code == 501


def test_that_port_is_closed_however_serving_ends(
    engine: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    ended: list[MetricsListener] = []
    monkeypatch.setattr(DrainingServer, "run", fail)
    monkeypatch.setattr(MetricsListener, "start", lambda _: None)
    monkeypatch.setattr(MetricsListener, "close", lambda one: ended.append(one))
    with pytest.raises(MemoryError):
        serve(Settings(port=0, metrics_port=0), engine.starter())
    assert len(ended) == 1


def test_silent_connections_do_not_pile_up_on_that_port(listener: str) -> None:
    import socket

    host, port = listener.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(MOST_CONNECTIONS + 4)]
    # Those above the limit are ended at once.
    assert [s for s in silent[MOST_CONNECTIONS:] if s.recv(1)] == []
    for one in silent:
        one.close()
    for _ in range(200):  # their threads see that at once too, but in threads
        try:
            assert requests.get(f"{listener}/metrics", timeout=10).status_code == 200
            return
        except requests.ConnectionError:
            threading.Event().wait(0.05)
    pytest.fail("no place was given back")


def test_scrapes_for_which_there_was_no_thread_take_no_place(
    listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as lacking:
        lacking.setattr(threading.Thread, "start", start)
        for _ in range(MOST_CONNECTIONS):
            with pytest.raises(requests.ConnectionError):
                requests.get(f"{listener}/metrics", timeout=10)
    assert requests.get(f"{listener}/metrics", timeout=10).status_code == 200


# What is counted


def test_requests_are_counted_by_api_outcome_and_model(
    make_client: MakeClient, engine: StubEngine, picture_file: bytes
) -> None:
    client = make_client(api_keys="k" * 20)
    key = {"Authorization": "k" * 20}
    assert ask(client, picture_file, **key) == 200
    assert ask(client, picture_file) == 401
    engine.outcome = GenerationFailed("x")
    assert ask(client, picture_file, **key) == 500
    client.get("/nothing")
    client.get("/health/ready")
    client.get("/health/live")
    found = {name: value for name, value in scrape(client).items() if ":requests_" in name}
    counted = {name: value for name, value in found.items() if value}

    def name(api: str, outcome: str) -> str:
        return f"img2img:requests_total{[('api', api), ('model', 'stub'), ('outcome', outcome)]}"

    assert counted == {
        name("basic", "success"): 1,
        name("basic", "unauthorized"): 1,
        name("basic", "failed"): 1,
        name("other", "not_found"): 1,
    }
    assert len(found) == len(ALL_APIS) * len(ALL_OUTCOMES)  # those at 0 are there from the start
    assert scrape(client)["img2img:e2e_request_latency_seconds_count[('api', 'basic')]"] == 1


def busy_statistics() -> EngineStatistics:
    """Two steps of one group, a part of an encode that was cached, and some ends."""
    made, key = EngineStatistics(), GroupKey(40, 40, 77, False)
    state = RequestState(1, key, 2, 5, arrived=0.0)
    step = Step(key, (1, 2), rows=3, padded=4, seconds=0.1)
    made.count_unit(step, 0.2, [state], ordinary=True, row_limit=16)
    made.count_unit(step, 0.05, [state], ordinary=True, row_limit=16)
    made.count_unit(Encode(key, 1, 0, 1, 0.3), 0.001, [state], ordinary=False, row_limit=16)
    timeline = Timeline()
    timeline.extend("queue", 1.0, 1.02)
    made.count_end(GenerationCancelled("left"), timeline)
    made.count_end(DeadlineExceeded("late"), timeline)
    made.count_end(GenerationFailed("broken"), timeline)
    assert (state.timeline.evaluations, state.timeline.rows_shared) == (2, 3.0)
    assert list(state.timeline.spans) == ["denoise", "encode"]
    return made


def test_the_engine_is_counted(
    client: TestClient, engine: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = EngineSnapshot(2, 5, 12.5, busy_statistics(), graphs={"step": GraphCounts(1, 2, 3, 4)})
    monkeypatch.setattr(engine, "snapshot", lambda: now, raising=False)
    found = scrape(client)
    expected = {
        "num_requests_running": 2,
        "num_requests_waiting": 5,
        "backlog_seconds": 12.5,
        "evaluations_total": 4,
        "unet_rows_total[('kind', 'request')]": 6,
        "unet_rows_total[('kind', 'padding')]": 2,
        "step_rows_count": 2,
        "step_rows_sum": 6,
        "step_rows_bucket[('le', '2.0')]": 0,
        "step_rows_bucket[('le', '3.0')]": 2,
        "step_rows_bucket[('le', '+Inf')]": 2,
        "step_occupancy_ratio_sum": 2 * 3 / 16,
        "units_total[('unit', 'denoise')]": 2,
        "units_total[('unit', 'encode')]": 1,
        "unit_seconds_total[('unit', 'denoise')]": 0.25,
        "cost_ratio_sum[('unit', 'denoise')]": 2.0 + 0.5,
        "cost_ratio_count[('unit', 'encode')]": 0,  # it was cached, which the model does not claim
        "cancellations_total[('reason', 'client')]": 1,
        "cancellations_total[('reason', 'deadline')]": 1,
        "generation_failures_total": 1,
        "images_total": 0,
        "request_queue_time_seconds_count": 0,
        "graph_captures_total[('graph', 'step')]": 1,
        "graph_replays_total[('graph', 'step')]": 3,
        "graph_fallbacks_total[('graph', 'step')]": 4,
    }
    assert {name: found[f"img2img:{name}"] for name in expected} == pytest.approx(expected)


def test_while_it_drains_the_engine_is_still_counted(
    engine: StubEngine, make_client: MakeClient, picture_file: bytes
) -> None:
    client = make_client(metrics="on")
    application: Any = client.app
    asyncio.run(application.state.engine_host.drain(0.0))
    assert ask(client, picture_file) == 503
    counted = scrape(client)
    assert counted["img2img:ready"] == 0
    assert counted["img2img:num_requests_running"] == 0
    name = "img2img:requests_total[('api', 'basic'), ('model', 'stub'), ('outcome', 'unavailable')]"
    assert counted[name] == 1


def test_before_the_model_is_there_it_says_so() -> None:
    text = Metrics(lambda: None).exposition().decode()
    found = series(text)
    assert found["img2img:ready"] == 0
    assert "img2img:backlog_seconds" not in found
    assert any(name.startswith("img2img:build_info") for name in found)


def test_a_distribution_counts_by_bounds_that_it_includes() -> None:
    values = Distribution((1, 2))
    for value in (0.5, 1, 1.5, 2, 99):
        values.observe(value)
    assert (values.counts, values.total) == ([2, 2, 1], 104)


# What a client cannot do


@pytest.mark.process
def test_a_thousand_odd_requests_make_no_series_of_their_own(
    make_client: MakeClient, picture_file: bytes
) -> None:
    client = make_client(api_keys="k" * 20)
    drawn = random.Random(5)

    def odd() -> str:
        return "".join(drawn.choices(string.ascii_letters + string.digits + "-_%~", k=12))

    # Each outcome and each API once, so that only what is odd can add to them.
    starts = ("/api/generate/", "/v1/images/", "/v1/generation/", "/sdapi/", "/")
    prepared = {"Authorization": "k" * 20}
    for start in starts:
        client.get(start + "x")
    for form in ({"prompt": "a"}, {"prompt": ""}):
        for headers in (prepared, {}):
            client.post(PATH, data=form, files={"init_image": picture_file}, headers=headers)
    before = set(scrape(client))
    for number in range(1000):
        kind, headers = number % 4, {"Authorization": odd(), "X-Request-Id": odd()}
        if kind == 0:
            client.request(odd().replace("%", "").replace("~", "X"), f"/{odd()}", headers=headers)
        elif kind == 1:
            client.get(drawn.choice(starts) + odd(), headers=headers | {"Accept": odd()})
        elif kind == 2:
            client.post(PATH, data={"prompt": odd()}, headers=headers)
        else:
            form = {"prompt": odd(), "sampler": odd(), "style_preset": odd(), "steps": odd()}
            form["clip_guidance_preset"] = drawn.choice([odd(), *ClipGuidancePreset])
            client.post(PATH, data=form, files={"init_image": b"x"}, headers=prepared)
    after = set(scrape(client))
    assert after == before
    assert len(after) < 600


def test_no_secret_is_in_it(make_client: MakeClient, picture_file: bytes) -> None:
    client = make_client(api_keys="key-of-a-user-0001")
    headers = {"Authorization": "key-of-a-user-0001", "X-Request-Id": "this-very-request"}
    files = {"init_image": ("a.png", picture_file)}
    assert client.post(PATH, data={"prompt": "hush"}, files=files, headers=headers).is_success
    text = client.get("/metrics").text
    assert not [word for word in ("key-of", "very-request", "hush", "listed key") if word in text]
