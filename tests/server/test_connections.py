"""Answers reach their clients however these speak, and nothing else holds a connection; on a real
server process."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import ENGINES, PATH
from tests.server.raw_http import connect, form_body, head, read_answer
from tests.server.server_process import ServerProcess, running_server

pytestmark = pytest.mark.process

MIB = 1024 * 1024


@pytest.fixture(scope="module", params=ENGINES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    settings = {
        **request.param,
        "max_header_kib": "8",
        "upload_patience": "4",
        "answer_patience": "1",
    }
    folder = tmp_path_factory.mktemp("connections")
    with running_server("tests.server.stub_server", folder, **settings) as process:
        process.wait_for("/health/ready")
        yield process


@pytest.fixture(scope="module", params=ENGINES)
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Asks for a key, believes the proxy in front of it, and has little room."""
    settings = {
        **request.param,
        "api_keys": "key",
        "auth_failures": "3/hour",
        "forwarded_allow_ips": "127.0.0.1",
        "max_upload_mib": "1",
        "max_bytes_in_flight_mib": "1",
    }
    folder = tmp_path_factory.mktemp("guarded")
    with running_server("tests.server.stub_server", folder, **settings) as process:
        process.wait_for("/health/ready")
        yield process


# Early refusals

SPOKEN = [
    ("1.1", ()),
    ("1.1", ("Connection: close",)),
    ("1.0", ("Connection: close",)),
    ("1.0", ()),
]


@pytest.mark.parametrize(("version", "lines"), SPOKEN)
@pytest.mark.parametrize(
    ("path", "size", "status"), [("/api/x", 6 * MIB, 404), (PATH, 50 * MIB, 413)]
)
def test_an_early_refusal_is_read_after_the_whole_body(
    server: ServerProcess, version: str, lines: tuple[str, ...], path: str, size: int, status: int
) -> None:
    length = f"Content-Length: {size}"
    for half_closes in (False, True):
        with connect(server.url) as connection:
            connection.sendall(head(length, *lines, path=path, version=version) + b"y" * size)
            if half_closes:
                connection.shutdown(socket.SHUT_WR)
            answer = read_answer(connection)
        assert answer.status == status
        assert answer.message
        assert "\nconnection: close" in answer.head


def test_urllib_reads_an_early_refusal(server: ServerProcess) -> None:
    for _ in range(5):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.url}/api/x", data=b"x" * 15_000_000, timeout=30)
        assert caught.value.code == 404
        caught.value.close()


def test_a_missing_key_is_told_after_the_whole_body(guarded: ServerProcess) -> None:
    size = 2 * MIB
    with connect(guarded.url) as connection:
        lines = (f"Content-Length: {size}", "Connection: close", "X-Forwarded-For: 203.0.113.1")
        connection.sendall(head(*lines) + b"y" * size)
        assert read_answer(connection).status == 401


@pytest.mark.parametrize("body", [b"", b"y" * (2 * MIB)])
def test_who_waits_to_be_told_to_go_on_is_refused_at_once(
    server: ServerProcess, body: bytes
) -> None:
    """The client may end there, or send its body all the same."""
    with connect(server.url) as connection:
        lines = (f"Content-Length: {2 * MIB}", "Expect: 100-continue")
        connection.sendall(head(*lines, path="/api/x"))
        time.sleep(0.2)
        connection.sendall(body)
        answer = read_answer(connection)
    assert (answer.status, answer.interim) == (404, 0)


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"this is not HTTP\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX-Long: " + b"y" * 9000, 431),
        (b"POST /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"y" * 9000), 431),
        (head("Transfer-Encoding: chunked") + b"zz\r\n", 400),
    ],
)
def test_what_is_no_request_is_told_so_after_all_of_it(
    server: ServerProcess, start: bytes, status: int
) -> None:
    with connect(server.url) as connection:
        connection.sendall(start + b"y" * (5 * MIB))
        answer = read_answer(connection)
    assert answer.status == status
    assert answer.message


def test_a_connection_goes_on_after_a_refusal_of_a_whole_request(server: ServerProcess) -> None:
    with connect(server.url) as connection:
        for _ in range(2):
            connection.sendall(head("Content-Length: 3", path="/api/x") + b"abc")
            assert b" 404 " in connection.recv(100)
            time.sleep(0.1)
            connection.recv(65536)


# Clients that end their side first


def test_who_ends_its_side_gets_its_picture(server: ServerProcess, picture_file: bytes) -> None:
    """One that is made at once; who waits for longer cannot be told from who has left."""
    body = form_body("0", picture_file)
    with connect(server.url) as connection:  # So that a decoder is there.
        connection.sendall(head(f"Content-Length: {len(body)}", "Connection: close") + body)
        assert read_answer(connection).status == 200
    with connect(server.url) as connection:
        connection.sendall(head(f"Content-Length: {len(body)}") + body)
        connection.shutdown(socket.SHUT_WR)
        answer = read_answer(connection)
    assert answer.status == 200
    assert b'"code":0' in answer.body


def test_who_ends_its_side_and_would_wait_for_long_has_left(
    server: ServerProcess, picture_file: bytes
) -> None:
    body = form_body("60", picture_file)
    with connect(server.url) as connection:
        lines = (f"Content-Length: {len(body)}", "X-Request-Id: half-closed")
        connection.sendall(head(*lines) + body)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert "status=499" in server.log_line("request_id=half-closed", seconds=8)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("path", ["/health/live", "/static/swagger/swagger-ui.css"])
def test_who_ends_its_side_gets_what_is_there(
    server: ServerProcess, version: str, path: str
) -> None:
    with connect(server.url) as connection:
        connection.sendall(head(method="GET", path=path, version=version, form=False))
        connection.shutdown(socket.SHUT_WR)
        answer = read_answer(connection)
    length = next(line for line in answer.head.splitlines() if line.startswith("content-length"))
    assert answer.status == 200
    assert len(answer.body) == int(length.split()[1])


def test_a_body_that_is_cut_short_is_told_so(server: ServerProcess) -> None:
    with connect(server.url) as connection:
        connection.sendall(head("Content-Length: 5000") + b"--x\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = read_answer(connection)
    assert answer.status == 400
    assert "ended before the request was complete" in answer.message


def test_no_stream_where_no_chunks_are_known(server: ServerProcess, picture_file: bytes) -> None:
    body = form_body("0", picture_file)
    with connect(server.url) as connection:
        lines = (f"Content-Length: {len(body)}", "Accept: text/event-stream")
        connection.sendall(head(*lines, version="1.0") + body)
        answer = read_answer(connection)
    assert "transfer-encoding" not in answer.head
    assert "content-type: application/json" in answer.head
    assert b'"code":0' in answer.body


@pytest.mark.parametrize(
    ("version", "accept"), [("1.0", "*/*"), ("1.1", "*/*"), ("1.1", "text/event-stream")]
)
def test_who_leaves_is_noticed_within_seconds(
    server: ServerProcess, picture_file: bytes, version: str, accept: str
) -> None:
    name = f"leaver-{version}-{len(accept)}"
    body = form_body("60", picture_file)
    with connect(server.url) as connection:
        lines = (f"Content-Length: {len(body)}", f"X-Request-Id: {name}", f"Accept: {accept}")
        connection.sendall(head(*lines, version=version) + body)
        if accept != "*/*":
            connection.recv(65536)
        time.sleep(0.5)
    assert "status=" in server.log_line(f"request_id={name}", seconds=8)


# What comes beside a body


def test_a_key_in_a_trailer_is_no_key(guarded: ServerProcess) -> None:
    with connect(guarded.url) as connection:
        lines = ("Transfer-Encoding: chunked", "X-Forwarded-For: 203.0.113.2")
        connection.sendall(head(*lines) + b"0\r\nAuthorization: key\r\n\r\n")
        assert b" 401 " in connection.recv(65536)


def test_an_address_in_a_trailer_is_no_address(guarded: ServerProcess) -> None:
    statuses = []
    for guess in range(6):
        lines = ("Transfer-Encoding: chunked", "Authorization: wrong", "Connection: close")
        with connect(guarded.url) as connection:
            start = head(*lines, "X-Forwarded-For: 203.0.113.3")
            trailer = f"0\r\nX-Forwarded-For: 203.0.113.{guess + 100}\r\n\r\n"
            connection.sendall(start + trailer.encode())
            statuses.append(read_answer(connection).status)
    assert statuses == [401, 401, 401, 429, 429, 429]


@pytest.mark.parametrize(
    "beside",
    [
        b"0\r\n" + b"X-A: b\r\n" * 200_000,
        b"0\r\nX-Long: " + b"y" * (2 * MIB),
        b"0\r\n" + b"X-A: b\r\n" * 2000 + b"\r\n",
        b"5;" + b"y" * (2 * MIB),
    ],
    ids=["many trailers", "a long trailer", "trailers that end", "a chunk's extension"],
)
def test_what_comes_beside_a_body_counts_as_headers(server: ServerProcess, beside: bytes) -> None:
    part = b"--x\r\n"
    with connect(server.url) as connection:
        start = head("Transfer-Encoding: chunked") + b"%x\r\n%s\r\n" % (len(part), part)
        connection.sendall(start)
        time.sleep(0.2)
        connection.sendall(beside)
        answer = read_answer(connection)
    assert (answer.status, answer.message) == (431, "the headers are over 8 KiB")


def test_a_body_in_small_chunks_is_taken(server: ServerProcess, picture_file: bytes) -> None:
    body = form_body("0", picture_file)
    chunks = b"".join(b"7\r\n%s\r\n" % body[i : i + 7] for i in range(0, len(body) - 7, 7))
    rest = body[(len(body) - 1) // 7 * 7 :]
    with connect(server.url) as connection:
        start = head("Transfer-Encoding: chunked", "Connection: close")
        end = b"%x\r\n%s\r\n0\r\nX-Checksum: 1\r\n\r\n" % (len(rest), rest)
        connection.sendall(start + chunks + end)
        assert read_answer(connection).status == 200


def test_an_offer_of_another_protocol_is_not_taken(
    server: ServerProcess, picture_file: bytes
) -> None:
    body = form_body("0", picture_file)
    offer = ("Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAMA")
    with connect(server.url) as connection:
        connection.sendall(head(f"Content-Length: {len(body)}", *offer))
        time.sleep(0.1)
        connection.sendall(body)
        assert read_answer(connection).status == 200
    handshake = ("Connection: Upgrade, close", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    with connect(server.url) as connection:
        connection.sendall(head(*handshake, method="GET", path="/health/live", form=False))
        assert read_answer(connection).status == 200


# Time and room


def test_an_upload_that_was_quick_may_not_stand_still(server: ServerProcess) -> None:
    with connect(server.url) as connection:
        part = b'--x\r\nContent-Disposition: form-data; name="init_image"; filename="a"\r\n\r\n'
        connection.sendall(head(f"Content-Length: {MIB}") + part + b"y" * (MIB // 2))
        began = time.monotonic()
        assert read_answer(connection).status == 408
        assert time.monotonic() - began < 25


def test_an_answer_that_nobody_reads_is_cut_off(server: ServerProcess) -> None:
    path = "/static/swagger/swagger-ui-bundle.js"
    with connect(server.url, receive_buffer=16384) as connection:
        connection.sendall(head(method="GET", path=path, form=False))
        time.sleep(3)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                received += len(data)
    assert received < MIB


def test_uploads_have_a_ceiling_together(guarded: ServerProcess, picture_file: bytes) -> None:
    """Of 2 MiB here: the largest upload always has room."""
    part = b'--x\r\nContent-Disposition: form-data; name="init_image"; filename="a"\r\n\r\n'
    key = "Authorization: key"
    upload = head(key, f"Content-Length: {MIB + 500}") + part + b"y" * (MIB - 1000)
    with connect(guarded.url) as first, connect(guarded.url) as second:
        first.sendall(upload)
        second.sendall(upload)
        time.sleep(0.5)
        with connect(guarded.url) as third:
            third.sendall(upload)
            refused = read_answer(third)
    assert refused.status == 503
    assert "\nretry-after: 5" in refused.head
    assert "2 MiB of uploads and unread answers" in refused.message
    # What the two held is free again once they are gone.
    body = form_body("0", picture_file)
    body += b"\r\n" * ((2 * MIB - 2000 - len(body)) // 2)
    give_up = time.monotonic() + 20
    status = 503
    while status == 503:
        assert time.monotonic() < give_up
        with connect(guarded.url) as connection:
            connection.sendall(
                head(key, f"Content-Length: {len(body)}", "Connection: close") + body
            )
            status = read_answer(connection).status
    assert status == 200


def test_the_process_stays_small_under_trailers(server: ServerProcess) -> None:
    def resident() -> int:
        text = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) // 1024

    before = resident()
    with connect(server.url) as connection:
        connection.sendall(head("Transfer-Encoding: chunked") + b"0\r\n")
        try:
            for _ in range(480):
                connection.sendall(b"X-Trailer: y\r\n" * 4500)
        except OSError:
            pass
    assert resident() - before < 60
