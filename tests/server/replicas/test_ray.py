"""The product on a cluster of Ray on this machine: `img2img serve` before engines elsewhere."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from scripts.benchmarks.replicas.cluster import Cluster, cluster
from scripts.benchmarks.replicas.faults import options, replica_pids, wait_for_replicas
from server.accounts.types import Balance
from tests.server.conftest import PATH
from tests.server.server_process import ROOT, ServerProcess, free_port, running_server
from tests.server.team import Team

pytestmark = pytest.mark.slow("ray")
pytest.importorskip("ray", reason='ray is not installed: pip install "img2img-server[ray]"')


@contextmanager
def front(
    here: Cluster, folder: Path, module: str = "server.cli", **settings: str
) -> Iterator[ServerProcess]:
    """Run `img2img serve` as a front of the cluster, by the interpreter that has ray."""
    port = str(free_port())
    environment = here.environment | {
        "IMG2IMG_RAY_ADDRESS": "auto",
        "IMG2IMG_PORT": port,
        "IMG2IMG_DATA_DIR": str(folder),
        **{f"IMG2IMG_{name.upper()}": value for name, value in settings.items()},
    }
    log_file = folder / f"front-{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve"],
            env=environment,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        server = ServerProcess(process, f"http://127.0.0.1:{port}", log_file)
        server.wait_for("/-/healthz")
        yield server
    finally:
        process.kill()
        process.wait()


def ask(url: str, picture: bytes, key: str = "", **fields: object) -> requests.Response:
    form = {"prompt": "a red house", "width": 320, "height": 320, "steps": 10, **fields}
    headers = {"Authorization": key, "Accept": "application/json"} if key else {}
    return requests.post(
        url + PATH,
        data={name: str(value) for name, value in form.items()},
        files={"init_image": ("a.png", picture)},
        headers=headers,
        timeout=120,
    )


def image_of(answer: requests.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"]["image"])


def test_the_embedded_model_on_a_replica_answers_as_one_in_the_servers_process(
    tmp_path: Path, picture_file: bytes
) -> None:
    with cluster(
        (2, 0), IMG2IMG_BATCH_INVARIANT="true", IMG2IMG_DEVICE="cpu", IMG2IMG_THREADS="1"
    ) as here:
        here.deploy(replicas=1, gpus=0)
        with front(here, tmp_path) as server:
            assert server.get("/-/healthz").text == "success"
            ready = server.get("/health/ready").json()["data"]
            remote = image_of(ask(server.url, picture_file, seed=7))
            events = requests.post(
                server.url + PATH,
                data={
                    "prompt": "a red house",
                    "width": "320",
                    "height": "320",
                    "steps": "10",
                    "seed": "7",
                    "previews": "true",
                },
                files={"init_image": ("a.png", picture_file)},
                headers={"Accept": "text/event-stream"},
                timeout=120,
            )
            server.terminate()
            assert server.exit_status() == 0, server.log
    *progress, result = [
        (block.partition("\n")[0].removeprefix("event: "), json.loads(block.partition("data: ")[2]))
        for block in events.text.split("\n\n")
        if block.startswith("event: ")
    ]
    steps = [data["step"] for name, data in progress if name == "progress"]
    assert len(steps) > 3
    assert steps == sorted(steps)
    assert any("preview" in data for _, data in progress)
    assert base64.b64decode(result[1]["data"]["image"]) == remote
    assert ready["model"] == "embedded"
    with running_server(
        "server.cli", tmp_path, "serve", batch_invariant="true", device="cpu", threads="1"
    ) as plain:
        plain.wait_for("/health/ready")
        assert plain.get("/-/healthz").text == "success"
        assert image_of(ask(plain.url, picture_file, seed=7)) == remote


def test_a_killed_replica_and_a_drained_node_lose_no_request(
    tmp_path: Path, picture_file: bytes
) -> None:
    """The images are those of their seeds, and each is charged once."""
    url = f"sqlite:///{tmp_path}/accounts.db"
    team = Team(url)
    key = team.make_key()
    with cluster((4, 4), (4, 4)) as here, ThreadPoolExecutor(8) as pool:
        here.deploy(**options(4, "h200*30"))
        wait_for_replicas(here, 4)
        with front(here, tmp_path, database_url=url) as server:
            seeds = [1, 1, 2, 3, 4, 5]
            answers = [
                pool.submit(ask, server.url, picture_file, key, seed=s, steps=30) for s in seeds
            ]
            team.wait_for({"open": 6})
            os.kill(replica_pids(here)[0], signal.SIGKILL)
            images = [image_of(answer.result()) for answer in answers]
            assert images[0] == images[1]
            assert len(set(images)) == 5
            assert team.states() == {"settled": 6}
            assert team.balance() == Balance(76, 0)
            assert "another takes its request" in server.log
            wait_for_replicas(here, 4)
            answers = [
                pool.submit(ask, server.url, picture_file, key, seed=s, steps=30) for s in seeds
            ]
            team.wait_for({"open": 6, "settled": 6})
            here.drain(1)
            assert [image_of(answer.result()) for answer in answers] == images
            wait_for_replicas(here, 4)
            assert len(replica_pids(here, 1)) == 0
            assert image_of(ask(server.url, picture_file, key, seed=2, steps=30)) == images[2]
    assert team.states() == {"settled": 13}
    assert team.problems() == []


def front_pid(here: Cluster) -> int:
    """The process that listens, or 0 where there is none just now."""
    return next(iter(here.processes(lambda line: "-m server.ray.fronts" in line)), 0)


def wait_until_healthy(url: str) -> None:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/-/healthz", timeout=5).text == "success":
                return
        time.sleep(0.2)
    raise AssertionError("no front answers")


def test_fronts_that_serve_keeps_are_the_same_server(tmp_path: Path, picture_file: bytes) -> None:
    port = str(free_port())
    with cluster(IMG2IMG_PORT=port, IMG2IMG_GRACE_PERIOD="5") as here:
        here.add_node(4, 4, front=1)
        here.deploy(**options(2, "h200*2"))
        here.deploy_fronts(fronts=1)
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url)
        killed = front_pid(here)
        first = image_of(ask(url, picture_file, seed=5))
        os.kill(killed, signal.SIGKILL)
        time.sleep(0.5)
        wait_until_healthy(url)
        assert front_pid(here) not in (0, killed)
        assert image_of(ask(url, picture_file, seed=5)) == first


def test_more_replicas_for_more_work_and_fewer_for_less(
    tmp_path: Path, picture_file: bytes
) -> None:
    with cluster((4, 4)) as here, ThreadPoolExecutor(16) as pool:
        more = {"max_replicas": 3, "target_backlog_seconds": 1.0}
        delays = {"upscale_delay_seconds": 0.0, "downscale_delay_seconds": 2.0}
        here.deploy(**options(1, "h200*40", **more, **delays))
        with front(here, tmp_path) as server:
            answers = [
                pool.submit(ask, server.url, picture_file, seed=s, steps=30) for s in range(1, 49)
            ]
            wait_for_replicas(here, 3)
            assert len(replica_pids(here)) == 3
            assert [answer.result().status_code for answer in answers] == [200] * 48
            wait_for_replicas(here, 1)
            assert len(replica_pids(here)) == 1
