"""A tiny HTTP server of prepared answers, which keeps what was asked."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class FakeServer:
    url: str
    answers: list[Answer]
    asked: list[Asked] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """The Idempotency-Keys that came."""
        return [one.headers["Idempotency-Key"] for one in self.asked]


@contextmanager
def fake_server(*answers: Answer, concurrency: int | None = None) -> Iterator[FakeServer]:
    """Serve the answers, one a request, then 500s. The key has so many places."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.append(Asked(self.path, dict(self.headers), body))
            self.close_connection = True
            (server.answers.pop(0) if server.answers else failing(500, "no answer left"))(self)

        def do_GET(self) -> None:
            limits = {"rate": None, "concurrency": concurrency}
            said = {"code": 0, "data": {"name": "a", "credits": None, "limits": limits}}
            _answer(200, "application/json", json.dumps(said).encode(), {})(self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = FakeServer(f"http://127.0.0.1:{http.server_address[1]}", list(answers))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def failing(status: int, message: str, **headers: str) -> Answer:
    """An envelope of a failure."""
    body = json.dumps({"code": -1, "message": message, "data": None}).encode()
    return _answer(status, "application/json", body, headers)


def picturing(seed: int, **headers: str) -> Answer:
    """An envelope with a picture of one pixel."""
    return _answer(200, "application/json", _picture(seed), headers)


def streaming(*events: tuple[str, object]) -> Answer:
    """A stream of events; cut where the last one is no result."""
    lines = [f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events]
    text = ": keep-alive\n\n" + "".join(lines)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.send_header("Connection", "close")
        handler.end_headers()
        for at in range(0, len(text), 7):
            piece = text[at : at + 7].encode()
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if events and events[-1][0] == "result":
            handler.wfile.write(b"0\r\n\r\n")

    return answer


def dropping(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    handler.connection.close()


def picture_event(seed: int) -> tuple[str, dict[str, Any]]:
    """The last event of a stream."""
    return "result", json.loads(_picture(seed))


def _picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    data = {"image": base64.b64encode(buffer.getvalue()).decode(), "seed": seed}
    return json.dumps({"code": 0, "message": "success", "data": data}).encode()


def _answer(status: int, kind: str, body: bytes, headers: dict[str, str]) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        told = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
        for name, value in (told | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer
