"""HTTP spoken by hand over a bare socket."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.server.conftest import PATH

FORM_TYPE = "multipart/form-data; boundary=x"


@dataclass(frozen=True)
class Answer:
    """All that came until the server ended its side; interim responses are left out."""

    status: int
    head: str
    body: bytes
    interim: int = 0

    @property
    def message(self) -> str:
        content = json.loads(self.body)
        assert content["code"] == -1
        assert content["data"] is None
        return str(content["message"])


def connect(url: str, receive_buffer: int | None = None) -> socket.socket:
    address = urlsplit(url)
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect((address.hostname, address.port))
    return connection


def head(
    *lines: str, method: str = "POST", path: str = PATH, version: str = "1.1", form: bool = True
) -> bytes:
    """A request's head with the given header lines."""
    start = [f"{method} {path} HTTP/{version}", "Host: a"]
    start += [f"Content-Type: {FORM_TYPE}"] if form else []
    return "".join(f"{line}\r\n" for line in [*start, *lines, ""]).encode()


def form_body(prompt: str, picture: bytes) -> bytes:
    """A form of a picture and a prompt; the stub engine takes as many seconds as that says."""
    text = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n%s\r\n' % prompt.encode()
    file = b'--x\r\nContent-Disposition: form-data; name="init_image"; filename="a"\r\n\r\n'
    return text + file + picture + b"\r\n--x--\r\n"


def read_answer(connection: socket.socket) -> Answer:
    received = b""
    while data := connection.recv(65536):
        received += data
    return parse_answer(received)


def parse_answer(received: bytes) -> Answer:
    interim = 0
    while True:
        assert received, "closed without an answer"
        start, _, received = received.partition(b"\r\n\r\n")
        status = int(start.split()[1])
        if status >= 200:
            return Answer(status, start.decode().lower(), received, interim)
        interim += 1
