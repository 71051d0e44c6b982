"""The life of a server process: loading, shutting down, and what is not HTTP."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.server.conftest import PATH
from tests.server.failures import assert_failure
from tests.server.server_process import PRODUCT, ROOT, ServerProcess, running_server
from tests.server.team import Team

pytestmark = pytest.mark.process


@contextmanager
def stub_server(folder: Path, **settings: str) -> Iterator[ServerProcess]:
    with running_server("tests.server.stub_server", folder, **settings) as server:
        yield server


def ask(server: ServerProcess, seconds: float, picture: bytes) -> requests.Response:
    """A request that takes as many seconds."""
    return requests.post(
        server.url + PATH,
        data={"prompt": str(seconds)},
        files={"init_image": ("a.png", picture)},
        timeout=60,
    )


def test_live_while_loading_then_ready(tmp_path: Path, picture_file: bytes) -> None:
    with stub_server(tmp_path, model="slow") as server:
        server.wait_for("/health/live")
        assert_failure(server.get("/health/ready"), 503, "the model is loading")
        server.wait_for("/health/ready")
        assert ask(server, 0, picture_file).json()["code"] == 0


def test_a_server_that_is_ready_says_where_its_page_is(tmp_path: Path) -> None:
    with stub_server(tmp_path, host="0.0.0.0", no_auth="true") as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        server.wait_for("/health/ready")
        assert server.log_line("Ready. The page: ").startswith(f"Ready. The page: {server.url}/ ")


def begin(
    pool: ThreadPoolExecutor, server: ServerProcess, seconds: float, picture: bytes
) -> Future[requests.Response]:
    """Ask for a picture that takes ``seconds``; return once it is under way."""
    ask(server, 0, picture)  # the first decoder has to start, which a busy machine takes long for
    running = pool.submit(ask, server, seconds, picture)
    time.sleep(1.0)
    return running


def test_shutdown_finishes_what_runs_and_refuses_what_comes(
    tmp_path: Path, picture_file: bytes
) -> None:
    with stub_server(tmp_path, grace_period="30") as server, ThreadPoolExecutor() as pool:
        server.wait_for("/health/ready")
        running = begin(pool, server, 2.5, picture_file)
        server.terminate()
        assert_failure(server.wait_for("/health/ready", 503), 503, "shutting down")
        assert_failure(ask(server, 0, picture_file), 503, "shutting down")
        assert server.get("/health/live").status_code == 200
        assert running.result().json()["code"] == 0
        assert server.exit_status() == 0, server.log


@pytest.mark.slow("operations")
def test_shutdown_fails_what_outlasts_the_grace_period(tmp_path: Path, picture_file: bytes) -> None:
    with stub_server(tmp_path, grace_period="0.3") as server, ThreadPoolExecutor() as pool:
        server.wait_for("/health/ready")
        running = begin(pool, server, 60, picture_file)
        server.terminate()
        assert_failure(running.result(), 503, "shutting down")
        assert server.exit_status() == 0, server.log


@pytest.mark.slow("operations")
def test_a_second_signal_ends_it_at_once(tmp_path: Path, picture_file: bytes) -> None:
    with stub_server(tmp_path, grace_period="300") as server, ThreadPoolExecutor() as pool:
        server.wait_for("/health/ready")
        running = begin(pool, server, 120, picture_file)
        server.terminate()
        server.wait_for("/health/ready", 503)
        server.process.send_signal(signal.SIGINT)
        server.exit_status(20)
        with contextlib.suppress(requests.ConnectionError):
            assert_failure(running.result(), 503, "shutting down")


def test_a_stop_while_loading(tmp_path: Path) -> None:
    with stub_server(tmp_path, model="slow") as server:
        server.wait_for("/health/live")
        server.terminate()
        assert server.exit_status() == 0, server.log


@pytest.mark.parametrize("devices", ["", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_load_that_hangs_keeps_neither_the_server_nor_its_engines(
    tmp_path: Path, devices: str, number: signal.Signals
) -> None:
    with stub_server(tmp_path, model="hanging", devices=devices) as server:
        loading = int(devices or 1)
        engines = [int(line.split()[-1]) for line in server.lines("loading in process", loading)]
        server.wait_for("/health/live")
        server.process.send_signal(number)
        assert server.exit_status(20) == (-number if number == signal.SIGKILL else 0), server.log
        give_up = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in engines):
            assert time.monotonic() < give_up
            time.sleep(0.05)


def test_a_load_that_takes_too_long_is_not_live(tmp_path: Path) -> None:
    with stub_server(tmp_path, model="hanging", start_timeout="1") as server:
        refused = server.wait_for("/health/live", 503)
        assert_failure(refused, 503, "the model has not loaded within 1 s")


HUNG_THREAD = """
import threading
from server.serve import leave_hung_threads
threading.Thread(target=threading.Event().wait, name={name!r}, daemon={daemon}).start()
leave_hung_threads(3)
"""


@pytest.mark.parametrize(("name", "daemon"), [("any", False), ("img2img-safety", True)])
def test_a_thread_that_hangs_does_not_keep_the_process(name: str, daemon: bool) -> None:
    """Nor is what it is in torn down under it, as that of the checks of images."""
    command = [sys.executable, "-c", HUNG_THREAD.format(name=name, daemon=daemon)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 3
    assert b"ended without waiting for what hangs" in ended.stderr


FAILED_AND_HUNG = """
import threading
from server.cli import main as cli
from server import serve as serving

def fail(settings, announce):
    threading.Thread(target=threading.Event().wait).start()
    return "no such weights"

serving.serve = fail
cli.app(["serve"])
"""


@pytest.mark.slow("operations")
def test_a_server_that_failed_ends_too_if_a_thread_of_it_hangs() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAILED_AND_HUNG],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert b"no such weights" in ended.stderr


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path: Path) -> None:
    with stub_server(tmp_path, model="broken") as server:
        assert server.exit_status() == 1
        assert "no such weights" in server.log
        assert "Traceback" not in server.log


def test_with_keys_a_port_in_use_is_told_in_one_line(tmp_path: Path) -> None:
    """No library's start has lines of its own before it: alembic's had seven."""
    team = Team(f"sqlite:///{tmp_path}/accounts.db")
    team.make_key()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with running_server(PRODUCT, tmp_path, "serve", database_url=team.url, port=port) as server:
            assert server.exit_status() == 1
            said = f"port {port} on 127.0.0.1 is in use; choose another with --port\n"
            assert server.log == said


def exchange(server: ServerProcess, data: bytes) -> tuple[bytes, bytes]:
    """Sends bytes as they are; the head and the body of what comes back."""
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0))) as connection:
        connection.settimeout(20)
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("stub")
    settings = {"forwarded_allow_ips": "127.0.0.1", "max_upload_mib": "1"}
    with stub_server(folder, **settings) as process:
        process.wait_for("/health/ready")
        yield process


def test_what_is_not_http_is_answered_in_the_envelope(server: ServerProcess) -> None:
    head, body = exchange(server, b"this is not HTTP\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {
        "code": -1,
        "message": "this is not a valid HTTP request",
        "data": None,
    }


def test_a_chunked_body_over_the_limit(server: ServerProcess) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
        for _ in range(80):
            yield b"y" * 100_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = requests.post(server.url + PATH, data=chunks(), headers=headers, timeout=30)
    assert_failure(response, 413, "over 3 MiB")


def test_client_that_leaves_is_logged(server: ServerProcess, picture_file: bytes) -> None:
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            server.url + PATH,
            data={"prompt": "30"},
            files={"init_image": ("a", picture_file)},
            headers={"X-Request-Id": "left-early"},
            timeout=0.5,
        )
    assert "status=499" in server.log_line("request_id=left-early")


def test_forwarded_headers_of_a_named_proxy_are_believed(server: ServerProcess) -> None:
    server.get("/nothing", headers={"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "via-1"})
    line = server.log_line("request_id=via-1")
    assert "client=203.0.113.9" in line


def test_forwarded_headers_are_ignored_by_default(tmp_path: Path) -> None:
    with stub_server(tmp_path) as server:
        server.wait_for("/health/ready")
        server.get("/nothing", headers={"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "via-2"})
        line = server.log_line("request_id=via-2")
        assert "client=127.0.0.1" in line
