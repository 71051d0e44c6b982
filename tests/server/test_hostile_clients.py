"""Clients that send too much or too slowly, to a real server process over a bare socket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.server.conftest import ENGINES, PATH
from tests.server.pictures import file_of, gradient
from tests.server.server_process import ServerProcess, running_server
from tests.server.team import Team

pytestmark = pytest.mark.process

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"


@pytest.fixture(scope="module", params=ENGINES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    settings = {
        **request.param,
        "header_timeout": "1.5",
        "max_header_kib": "8",
        "min_upload_rate": "4",
        "upload_patience": "1.5",
        "max_upload_mib": "0.1",
    }
    folder = tmp_path_factory.mktemp("slow")
    with running_server("tests.server.stub_server", folder, **settings) as process:
        process.wait_for("/health/ready")
        yield process


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def answer(connection: socket.socket) -> tuple[int, str]:
    """Status and message of the answer; the server then closes the connection."""
    received = b""
    while data := connection.recv(65536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    content = json.loads(body)
    assert content["code"] == -1
    return int(head.split()[1]), content["message"]


def test_headers_that_never_end_are_cut_off_by_time(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD.encode())
        assert answer(connection) == (408, "the headers were not complete within 1.5 s")


def test_headers_that_drip_are_cut_off_too(server: ServerProcess) -> None:
    with connect(server) as connection:
        began = time.monotonic()
        connection.sendall(b"GET /docs HTTP/1.1\r\nX-Long: ")
        connection.settimeout(0.2)
        received = b""
        while not received:
            assert time.monotonic() - began < 30
            connection.sendall(b"y")
            try:
                received = connection.recv(65536)
            except TimeoutError:
                continue
        assert b" 408 " in received


def test_a_connection_without_a_word_is_closed(server: ServerProcess) -> None:
    with connect(server) as connection:
        assert connection.recv(1) == b""


@pytest.mark.parametrize("ends", [b"", b"\r\n\r\n"])
def test_headers_over_their_size(server: ServerProcess, ends: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /docs HTTP/1.1\r\nX-Long: " + b"y" * 9000 + ends)
        assert answer(connection) == (431, "the headers are over 8 KiB")


def test_many_headers_over_their_size(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /docs HTTP/1.1\r\n" + b"X-A: b\r\n" * 2000)
        assert answer(connection) == (431, "the headers are over 8 KiB")


def test_an_upload_that_stalls(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(f"{HEAD}Content-Length: 5000\r\n\r\n--x\r\n".encode())
        assert answer(connection) == (408, "the upload is 1.5 s behind 4 KiB/s")


def test_a_chunked_upload_that_drips(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        part = b'--x\r\nContent-Disposition: form-data; name="init_image"; filename="a"\r\n\r\n'
        connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        connection.settimeout(0.2)
        began, received = time.monotonic(), b""
        while not received:
            assert time.monotonic() - began < 30
            connection.sendall(b"1\r\nz\r\n")
            try:
                received = connection.recv(65536)
            except TimeoutError:
                continue
        assert b" 408 " in received


def test_a_chunked_upload_over_its_size(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        part = b'--x\r\nContent-Disposition: form-data; name="init_image"; filename="a"\r\n\r\n'
        connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        received = b""
        connection.settimeout(0.05)
        for _ in range(200):
            try:
                connection.sendall(b"4000\r\n" + b"z" * 0x4000 + b"\r\n")
                received = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if received:
                break
        assert b" 413 " in received


def test_who_is_quick_enough_is_served_more_than_once_on_a_connection(
    server: ServerProcess,
) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    with closing(connection):
        connection.connect()
        used = connection.sock
        for _ in range(3):
            connection.request("GET", "/health/ready")
            response = connection.getresponse()
            assert response.status == 200
            response.read()
            time.sleep(0.7)  # idle between requests longer in all than headers may take
        assert connection.sock is used


def test_a_newer_schema_ends_the_server(tmp_path: Path) -> None:
    team = Team(f"sqlite:///{tmp_path}/accounts.db")
    change = sa.text("UPDATE alembic_version SET version_num = '9999'")
    team.do(lambda database: database.write(lambda c: c.execute(change)))
    with running_server("tests.server.stub_server", tmp_path, database_url=team.url) as server:
        assert server.exit_status() == 1
        assert "revision 9999, is newer than this server" in server.log


def test_a_client_that_leaves_pays_nothing(tmp_path: Path) -> None:
    team = Team(f"sqlite:///{tmp_path}/accounts.db")
    key = team.make_key()
    with running_server("tests.server.stub_server", tmp_path, database_url=team.url) as server:
        server.wait_for("/health/ready")
        picture = file_of(gradient(320, 320))
        part = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n60\r\n'
        part += b'--x\r\nContent-Disposition: form-data; name="init_image"; filename="a"\r\n\r\n'
        part += picture + b"\r\n--x--\r\n"
        for accept in ("*/*", "text/event-stream"):
            with connect(server) as connection:
                head = f"{HEAD}Accept: {accept}\r\nAuthorization: {key}\r\n"
                connection.sendall(f"{head}Content-Length: {len(part)}\r\n\r\n".encode() + part)
                give_up = time.monotonic() + 20
                while "open" not in team.states():
                    assert time.monotonic() < give_up, server.log
                    time.sleep(0.05)
            give_up = time.monotonic() + 20
            while "open" in team.states():
                assert time.monotonic() < give_up, server.log
                time.sleep(0.05)
        assert team.states() == {"released": 2}
        assert team.balance().available == 100
        assert team.problems() == []
