"""uvicorn's protocol with what it lacks: envelopes for what is no HTTP, and limits on headers."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from server.envelope import failure

_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def limited_protocol(max_header_bytes: int, header_seconds: float) -> type[asyncio.Protocol]:
    """The protocol under these limits, for `uvicorn.Config(http=...)`.

    Headers over `max_header_bytes` are answered 431, headers that have not come after
    `header_seconds` 408; a connection on which nothing was sent at all is then closed silently.
    """

    class LimitedProtocol(HttpToolsProtocol):
        def __init__(
            self,
            config: uvicorn.Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop)
            self._header_bytes = 0
            self._in_headers = True
            self._deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._set_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self._drop_deadline()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._in_headers:
                if self._deadline is None:
                    self._set_deadline()
                self._header_bytes += len(data)
            super().data_received(data)
            # A body's first bytes may come with its headers: only what is all headers counts.
            if self._in_headers and self._header_bytes > max_header_bytes:
                self._refuse(431, f"the headers are over {max_header_bytes // 1024} KiB")

        def on_headers_complete(self) -> None:
            self._in_headers = False
            self._drop_deadline()
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            self._header_bytes = 0
            if size > max_header_bytes:
                self._refuse(431, f"the headers are over {max_header_bytes // 1024} KiB")
                return
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_headers = True
            self._header_bytes = 0
            if not self.transport.is_closing():
                super().on_message_complete()

        def on_body(self, body: bytes) -> None:
            if not self.transport.is_closing():
                super().on_body(body)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "this is not a valid HTTP request")

        def _set_deadline(self) -> None:
            self._deadline = self.loop.call_later(header_seconds, self._out_of_time)

        def _drop_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _out_of_time(self) -> None:
            self._deadline = None
            if not self._header_bytes:
                self.transport.close()
            elif not self._busy:
                self._refuse(408, f"the headers were not complete within {header_seconds:g} s")

        @property
        def _busy(self) -> bool:
            """Whether an earlier request on this connection is still being answered."""
            return self.cycle is not None and not self.cycle.response_complete

        def _refuse(self, status: int, message: str) -> None:
            if self.transport.is_closing():
                return
            self._drop_deadline()
            body = bytes(failure(status, message).body)
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return LimitedProtocol
