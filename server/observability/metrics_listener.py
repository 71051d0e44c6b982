"""`/metrics` on a port of its own, apart from the public one and from its event loop."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Thread
from typing import Any

from server.observability.metrics import MEDIA_TYPE, Metrics

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 16
WAIT_SECONDS = 10.0
"""What who scrapes gets to send its request, and to take the answer."""


class MetricsListener:
    """Answers `GET /metrics` in threads of its own, so that nothing else can keep it waiting."""

    def __init__(self, metrics: Metrics, sockets: Sequence[socket.socket]) -> None:
        """Answer on ``sockets``, which listen already, from `start` to `close`."""
        self._servers = [_Server(metrics, listener) for listener in sockets]

    def start(self) -> None:
        """Answer from now on."""
        for server in self._servers:
            Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Answer no more. Call it only once started."""
        for server in self._servers:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, metrics: Metrics, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.metrics = metrics
        self._places = BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; not at all where too many are being answered."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread that would give the place back
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the place to the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say at debug that who scraped has left, or is no client at all."""
        logger.debug("a scrape failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = WAIT_SECONDS

    def do_GET(self) -> None:
        if self.path.partition("?")[0].rstrip("/") != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        body = self.server.metrics.exposition()
        self.send_response(200)
        self.send_header("Content-Type", MEDIA_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "img2img-server"

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
