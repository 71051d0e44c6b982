"""Clients that read slowly, say nothing, send nonsense, or leave."""

from __future__ import annotations

import random
import resource
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from scripts.robustness.faults.scene import PATIENCE, PICTURE, Fault, Scene, on_sqlite
from scripts.robustness.kill_test import FORM, PATH

SLOW, HALF_CLOSED, IDLE, MALFORMED, LEAVING = 40, 100, 10_000, 500, 1_000
OWN_DESCRIPTORS = 500
"""Left to the server and to this process for everything else."""
THREADS = 32
_SERVED = b"HTTP/1.1 200"


def form_body(fields: dict[str, object] | None = None) -> bytes:
    """Return the body of the load's form, whose boundary is x."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (name.encode(), str(value).encode())
        for name, value in {**FORM, **(fields or {})}.items()
    ]
    upload = b'--x\r\nContent-Disposition: form-data; name="init_image"; filename="a"\r\n\r\n'
    return b"".join([*parts, upload, PICTURE, b"\r\n--x--\r\n"])


def request_of(key: str, body: bytes, *lines: str, length: int | None = None) -> bytes:
    """Return a request's bytes: its head with more header `lines`, and its body."""
    head = [
        f"POST {PATH} HTTP/1.1",
        "Host: a",
        f"Authorization: {key}",
        f"Content-Length: {len(body) if length is None else length}",
        *(lines or ("Content-Type: multipart/form-data; boundary=x",)),
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def connect(scene: Scene) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    connection.connect(scene.address)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes its side or resets the connection."""
    received = b""
    with suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return received


def _each(scene: Scene, count: int, work: Callable[[Scene, random.Random], str]) -> dict[str, int]:
    """Do `work` so many times by many threads; count what each says. A timeout is a hang."""

    def one(number: int) -> str:
        try:
            return work(scene, random.Random(number))
        except TimeoutError:
            return "hung"
        except ConnectionError:
            return "cut off"

    said: dict[str, int] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for word in pool.map(one, range(count)):
            said[word] = said.get(word, 0) + 1
    scene.hung += said.get("hung", 0)
    return said


def _counted(said: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {word}" for word, count in sorted(said.items()))


def slow_readers(scene: Scene) -> None:
    """Event streams with previews of which nothing is read."""
    lines = ("Content-Type: multipart/form-data; boundary=x", "Accept: text/event-stream")
    request = request_of(scene.api_key, form_body({"previews": "true"}), *lines)
    readers = []
    for _ in range(SLOW):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE)
        connection.connect(scene.address)
        connection.sendall(request)
        readers.append(connection)
    scene.wait_until("streams are cut", lambda: _connections(scene) <= 12, PATIENCE)
    for connection in readers:
        connection.close()
    scene.notes.append(f"{SLOW} streams, cut by the server")
    scene.mark()
    scene.wait_for_answers()


def _connections(scene: Scene) -> int:
    return sum(one.status == "ESTABLISHED" for one in scene.server.net_connections("tcp"))


def half_closed(scene: Scene) -> None:
    """Clients that end their side after the request, and wait."""
    request = request_of(scene.api_key, form_body())

    def one(scene: Scene, _: random.Random) -> str:
        with connect(scene) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = read_to_end(connection)
        return "served" if answer.startswith(_SERVED) else "ended"

    scene.notes.append(_counted(_each(scene, HALF_CLOSED, one)))
    scene.mark()
    scene.wait_for_answers()


def idle(scene: Scene) -> None:
    """Many connections that were served once and say nothing more."""
    limit = min(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        scene.server.rlimit(resource.RLIMIT_NOFILE)[0],
    )
    count = min(IDLE, limit - OWN_DESCRIPTORS)
    probe = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    connections = []
    for _ in range(count):
        connections.append(connect(scene))
        connections[-1].sendall(probe)
    served = sum(connection.recv(4096).startswith(_SERVED) for connection in connections)
    held = scene.server.num_fds()
    scene.wait_for_answers(4)
    resident = scene.server.memory_info().rss
    for connection in connections:
        connection.close()
    if served < count:
        scene.problems.append(f"{count - served} of {count} were not served")
    scene.notes.append(f"{count:,} connections, {held:,} descriptors, {resident >> 20} MiB")
    scene.mark()
    scene.wait_for_answers()


def no_descriptors(scene: Scene) -> None:
    """More connections than the server may have descriptors."""
    limits = scene.server.rlimit(resource.RLIMIT_NOFILE)
    allowed = scene.server.num_fds() + 20
    scene.server.rlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
    connections = []
    for _ in range(200):
        connection = socket.socket()
        connection.settimeout(1.0)
        connection.connect(scene.address)
        connections.append(connection)
    time.sleep(3.0)
    for connection in connections:
        connection.close()
    scene.server.rlimit(resource.RLIMIT_NOFILE, limits)
    scene.notes.append(f"200 connections, 20 descriptors left of {allowed}")
    scene.mark()
    scene.wait_for_answers()


def malformed(scene: Scene) -> None:
    """Forms that are cut, flipped, mislabelled; by a key without credits, so none is made."""

    def one(scene: Scene, chance: random.Random) -> str:
        with connect(scene) as connection:
            connection.sendall(malformed_request(scene.poor_key, chance))
            connection.shutdown(socket.SHUT_WR)
            answer = read_to_end(connection)
        return f"answered {answer[9:12].decode()}" if answer else "ended"

    said = _each(scene, MALFORMED, one)
    scene.notes.append(_counted(said))
    if wrong := {w for w in said if w.startswith("answered 5") or w == "answered 200"}:
        scene.problems.append(f"malformed forms were {', '.join(wrong)}")
    scene.mark()
    scene.wait_for_answers()


def malformed_request(key: str, chance: random.Random) -> bytes:
    """Return a request whose form is wrong in one of several ways."""
    body = bytearray(form_body())
    line = "Content-Type: multipart/form-data; boundary=x"
    match chance.randrange(7):
        case 0:
            del body[chance.randrange(len(body)) :]
        case 1:
            return request_of(key, bytes(body[: chance.randrange(len(body))]), line, length=10**6)
        case 2:
            line = chance.choice(
                (
                    "Content-Type: multipart/form-data",
                    "Content-Type: multipart/form-data; boundary=",
                    f"Content-Type: multipart/form-data; boundary={'y' * 200}",
                    "Content-Type: multipart/mixed; boundary=x",
                    "Content-Type: application/json",
                )
            )
        case 3:
            for _ in range(chance.randint(1, 20)):
                body[chance.randrange(300)] = chance.randrange(256)
        case 4:
            part = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n'
            body = bytearray(part * 5000) + body
        case 5:
            body = body.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n")
        case 6:
            body = body.replace(b"\r\n", chance.choice((b"\n", b"\r", b"")), chance.randint(1, 9))
    return request_of(key, bytes(body), line)


def leaving(scene: Scene) -> None:
    """Clients that disconnect at any moment, half of them with a reset."""
    request = request_of(scene.api_key, form_body())

    def one(scene: Scene, chance: random.Random) -> str:
        with connect(scene) as connection:
            if chance.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            whole = chance.random() < 0.6
            connection.sendall(request if whole else request[: chance.randrange(len(request))])
            time.sleep(chance.uniform(0, 0.5 if whole else 0.05))
            return "left while it was made" if whole else "left in the upload"

    scene.notes.append(_counted(_each(scene, LEAVING, one)))
    scene.mark()
    scene.wait_for_answers()


FAULTS = tuple(
    Fault(name, happen, on_sqlite, rehearsed=True)
    for name, happen in (
        ("slow readers of the event stream", slow_readers),
        ("half-closed sockets", half_closed),
        ("idle connections", idle),
        ("no descriptors left", no_descriptors),
        ("malformed multipart", malformed),
        ("clients that disconnect at random", leaving),
    )
)
