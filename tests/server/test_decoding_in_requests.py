"""Hostile uploads against a real server: they are refused, and nobody else waits for them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from tests.server.hostile_pictures import progressive_jpeg
from tests.server.pictures import file_of, four_corners
from tests.server.server_process import ServerProcess, running_server

pytestmark = pytest.mark.process

PATH = "/api/generate/basic/imageToImage"
PLAIN = file_of(four_corners(640, 640))
SLOW = progressive_jpeg()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(
        "tests.server.stub_server",
        folder,
        picture_cpu_seconds="30",
        picture_threads="2",
        request_timeout="3",
    ) as running:
        running.wait_for("/health/ready")
        yield running


def post(server: ServerProcess, picture: bytes) -> requests.Response:
    return requests.post(
        server.url + PATH,
        data={"prompt": "0", "image_strength": "1"},
        files={"init_image": ("a", picture)},
        timeout=60,
    )


def busy_decoders(server: ServerProcess) -> list[psutil.Process]:
    """The decoders that have used CPU time within a fifth of a second."""
    decoders = [
        child
        for child in psutil.Process(server.process.pid).children()
        if "server.images.workers.worker" in " ".join(child.cmdline())
    ]
    before = {child.pid: sum(child.cpu_times()[:2]) for child in decoders}
    time.sleep(0.2)
    return [
        child
        for child in decoders
        if child.is_running() and sum(child.cpu_times()[:2]) > before[child.pid] + 0.02
    ]


@pytest.mark.slow("operations")
def test_the_time_limit_of_a_request_ends_its_decoding(server: ServerProcess) -> None:
    answer = post(server, SLOW)
    assert answer.status_code == 504
    assert answer.json()["message"] == "the picture was not decoded within 3 s"
    assert not busy_decoders(server)
    assert post(server, PLAIN).status_code == 200


def test_a_client_that_leaves_ends_its_decoding(tmp_path: Path) -> None:
    with running_server(
        "tests.server.stub_server", tmp_path, picture_cpu_seconds="60", request_timeout="120"
    ) as server:
        server.wait_for("/health/ready")
        leave_while_decoding(server)
        give_up = time.monotonic() + 5
        while busy_decoders(server):
            assert time.monotonic() < give_up
        assert post(server, PLAIN).status_code == 200


def leave_while_decoding(server: ServerProcess) -> None:
    """Send a picture that takes 19 s to decode, and close the connection meanwhile."""
    request = requests.Request(
        "POST", server.url + PATH, data={"prompt": "0"}, files={"init_image": ("a", SLOW)}
    ).prepare()
    assert isinstance(request.body, bytes)
    lines = [f"POST {PATH} HTTP/1.1", "Host: a"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode() + request.body)
        give_up = time.monotonic() + 10
        while not busy_decoders(server):
            assert time.monotonic() < give_up


def test_a_plain_request_is_answered_beside_four_hostile_ones(tmp_path: Path) -> None:
    with running_server(
        "tests.server.stub_server", tmp_path, picture_cpu_seconds="1", request_timeout="60"
    ) as server:
        server.wait_for("/health/ready")
        with ThreadPoolExecutor(4) as attackers:
            attacks = [attackers.submit(post, server, SLOW) for _ in range(4)]
            time.sleep(0.3)
            assert post(server, PLAIN).status_code == 200
            for attack in attacks:
                assert attack.result().status_code == 400
                assert attack.result().json()["message"] == (
                    "init_image: the picture takes more than 1 s to decode"
                )


def test_a_server_that_ends_leaves_no_decoder(tmp_path: Path) -> None:
    with running_server("tests.server.stub_server", tmp_path) as server:
        server.wait_for("/health/ready")
        assert post(server, PLAIN).status_code == 200
        decoders = psutil.Process(server.process.pid).children()
        assert decoders
        server.terminate()
        assert server.exit_status() in (0, -15)
        _, alive = psutil.wait_procs(decoders, timeout=10)
        assert not alive
