"""A real run under load, and what every query of the dashboard says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from scripts.paths import ROOT
from scripts.services.throwaway_prometheus import Prometheus, Sample, throwaway_prometheus
from tests.server.pictures import file_of, gradient
from tests.server.server_process import ServerProcess, free_port, running_server
from tests.server.team import Team

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PATH = "/api/generate/basic/imageToImage"
VARIABLES = {"$instance": ".*", "$__rate_interval": "5m"}
SAMPLERS = ("K_EULER", "K_DPMPP_2M", "DDIM", "K_HEUN")


@dataclass(frozen=True)
class Query:
    """A query of a panel, with the dashboard's variables filled in."""

    panel: str
    legend: str
    expression: str


@dataclass
class Run:
    """A server that was asked, and the Prometheus that scraped it meanwhile."""

    server: ServerProcess
    metrics_url: str
    prometheus: Prometheus
    statuses: list[int]


def queries() -> list[Query]:
    """Return every query of the dashboard."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found.append(Query(panel["title"], target["legendFormat"], expression))
    return found


@contextmanager
def scraped_run(folder: Path, images: int, clients: int) -> Iterator[Run]:
    """Serve the embedded model on a CPU, ask for ``images`` by ``clients`` at a time, and more that
    is refused or left; hand out what there is to see of it. Raises NoPrometheus."""
    database = f"sqlite:///{folder}/accounts.db"
    key = Team(database).make_key("dashboard", 100_000)
    port = free_port()
    settings = {"database_url": database, "metrics_port": str(port), "log_format": "json"}
    with (
        running_server("server.cli", folder, "serve", **settings) as server,
        throwaway_prometheus([f"127.0.0.1:{port}"], [ALERTS]) as prometheus,
    ):
        run = Run(server, f"http://127.0.0.1:{port}/metrics", prometheus, [])
        server.wait_for("/health/ready", seconds=300)
        prometheus.wait_for("img2img:ready == 1")  # a rate needs a value from before
        with ThreadPoolExecutor(clients) as pool:
            run.statuses += pool.map(lambda number: ask(run, key, number), range(images))
        ask(run, "wrong", 0)
        leave(run, key)
        prometheus.wait_for(f"img2img:images_total >= {images}")
        yield run


def ask(run: Run, key: str, number: int) -> int:
    """Ask for one small image, of one of several kinds by its number; return the status."""
    form = {
        "prompt": f"a blue circle, {number % 3}",
        "width": 320,
        "height": (320, 384)[number % 2],
        "steps": 10 + number % 8,
        "sampler": SAMPLERS[number % len(SAMPLERS)],
        "image_strength": 0.4,
    }
    files = {"init_image": ("a.png", file_of(gradient(320, 320)))}
    headers = {"Authorization": key}
    response = requests.post(run.server.url + PATH, form, files=files, headers=headers, timeout=600)
    return response.status_code


def leave(run: Run, key: str) -> None:
    """Ask for an image that takes long and leave before it is there."""
    form = {"prompt": "a blue circle", "width": 768, "height": 768, "steps": 50}
    files = {"init_image": ("a.png", file_of(gradient(320, 320)))}
    headers = {"Authorization": key}
    try:
        requests.post(run.server.url + PATH, form, files=files, headers=headers, timeout=1.0)
    except requests.ReadTimeout:
        run.prometheus.wait_for('img2img:cancellations_total{reason="client"} >= 1')


def in_words(samples: list[Sample]) -> str:
    """Return the values of a query's series, at most four, for people."""
    values = []
    for sample in samples[:4]:
        shown = [v for k, v in sample["metric"].items() if k not in ("__name__", "instance", "job")]
        value = float(sample["value"][1])
        text = f"{value:.4g}" if math.isfinite(value) else "no value"
        values.append(" ".join([*shown, text]))
    return ", ".join(values) + (", ..." if len(samples) > 4 else "")
