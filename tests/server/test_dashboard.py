"""The dashboard and the alert rules: well-formed, tried on series, run against a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from scripts.services.dashboard_run import ALERTS, DASHBOARD, Run, queries, scraped_run
from scripts.services.throwaway_prometheus import NoPrometheus
from server.observability.metrics import Metrics
from tests.server.server_process import ROOT
from tests.services import skip_or_fail

METRIC = re.compile(r"\b(?:img2img:|process_)[a-z0-9_]+")
OF_A_CARD = {"Runs by a graph", "Device utilisation (NVML)"}
"""Panels that are empty on a CPU."""
IMAGES = 24


@pytest.fixture
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        skip_or_fail("promtool is not installed (Debian: apt-get install prometheus)")
    return program


def test_the_alert_rules_are_right(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", ALERTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(
    promtool: str, tmp_path: Path
) -> None:
    for file in (ALERTS, ROOT / "tests" / "data" / "alerts_test.yml"):
        shutil.copy(file, tmp_path)
    command = [promtool, "test", "rules", tmp_path / "alerts_test.yml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert not [q for q in queries() if "$" in q.expression]


def known_metrics() -> set[str]:
    """Every name that a server can have, its engine's by what the collector and the page name."""
    page = (ROOT / "docs" / "observability.md").read_text()
    bases = set(re.findall(r"img2img:[a-z0-9_]+", page))
    own = {
        sample.name
        for family in text_string_to_metric_families(Metrics(lambda: None).exposition().decode())
        for sample in family.samples
    }
    return own | bases | {f"{name}_{end}" for name in bases for end in ("bucket", "sum", "count")}


def test_dashboard_and_alerts_name_metrics_that_exist() -> None:
    named = {name for q in queries() for name in METRIC.findall(q.expression)}
    named |= set(METRIC.findall(ALERTS.read_text()))
    assert len(named) > 20
    assert named <= known_metrics()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    try:
        with scraped_run(tmp_path_factory.mktemp("run"), IMAGES, clients=8) as run:
            yield run
    except NoPrometheus as reason:
        skip_or_fail(str(reason))


@pytest.mark.slow("operations")
def test_every_query_of_the_dashboard_has_a_value_in_a_real_run(run: Run) -> None:
    empty = [q for q in queries() if not run.prometheus.query(q.expression)]
    assert {query.panel for query in empty} <= OF_A_CARD, empty


@pytest.mark.slow("operations")
def test_a_real_run_is_counted_to_the_last(run: Run) -> None:
    def total(expression: str) -> float:
        (sample,) = run.prometheus.query(f"sum({expression})")
        return float(sample["value"][1])

    assert run.statuses == [200] * IMAGES
    assert total("img2img:images_total") == IMAGES
    assert total('img2img:requests_total{api="basic", outcome="success"}') == IMAGES
    assert total("img2img:e2e_request_latency_seconds_count") == IMAGES
    assert total("img2img:request_decode_time_seconds_count") == IMAGES
    assert total('img2img:requests_total{outcome="unauthorized"}') == 1
    assert total('img2img:cancellations_total{reason="client"}') == 1
    # What was held is paid or given back, and nothing waits.
    run.prometheus.wait_for('img2img:credits_total{kind="released"} > 0')
    held = total('img2img:credits_total{kind="reserved"}')
    paid, back = (total(f'img2img:credits_total{{kind="{k}"}}') for k in ("charged", "released"))
    assert held == pytest.approx(paid + back)
    assert total("img2img:num_requests_waiting") == 0
    rows = total('img2img:unet_rows_total{kind="request"}')
    assert total("img2img:step_rows_sum") == rows
    assert total("img2img:evaluations_total") * 2 == rows


@pytest.mark.slow("operations")
def test_the_log_has_a_line_for_every_image(run: Run) -> None:
    lines = [json.loads(line) for line in run.server.log.splitlines()]
    made = [line for line in lines if line["message"] == "request" and line.get("images")]
    assert len(made) == IMAGES
    for line in made:
        assert line["key"] == "dashboard"
        stages = ("queue", "encode", "denoise", "decode")
        assert all(line[f"{stage}_seconds"] >= 0 for stage in stages)
        assert line["rows_shared"] >= 2
        assert line["credits"] > 0
    assert "blue circle" not in run.server.log


@pytest.mark.slow("operations")
def test_no_alert_of_the_server_itself_fires(run: Run) -> None:
    firing = run.prometheus.query('ALERTS{alertstate="firing"}')
    assert firing == []
    rules = requests.get(f"{run.prometheus.url}/api/v1/rules", timeout=10).json()
    (group,) = rules["data"]["groups"]
    assert [rule["health"] for rule in group["rules"]] == ["ok"] * len(group["rules"])
