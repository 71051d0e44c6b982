"""uvicorn's protocol with what it lacks: envelopes for what is no HTTP, limits on what a client may
send beside a body and on how long it may hold a connection, and answers that are not lost."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.client_transport import ClientTransport
from server.envelope import failure

MAX_PIPELINED = 16
"""Requests that may wait on a connection for the answer to an earlier one."""

PROBE_SECONDS = 1.0
"""How often a client that has ended its side is asked whether it still listens."""

UNSENT_IN_KERNEL = 64 * 1024
"""Bytes of an answer that the kernel takes beyond what is on its way: an answer that nobody reads
stays with us, where it is counted, and a slow reader's progress is seen in small steps."""

_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


@dataclass(frozen=True)
class Limits:
    """Bytes and seconds that a connection may take."""

    header_bytes: int
    header_seconds: float
    answer_seconds: float


def limited_protocol(
    max_header_bytes: int, header_seconds: float, answer_seconds: float
) -> type[asyncio.Protocol]:
    """Return the protocol under these limits, for `uvicorn.Config(http=...)`.

    Headers or trailers over `max_header_bytes` are answered 431, headers that have not come after
    `header_seconds` 408; a connection on which nothing was sent at all is then closed silently, and
    one that takes no byte of its answer for `answer_seconds` is cut.
    """
    limits = Limits(max_header_bytes, header_seconds, answer_seconds)
    return type("LimitedProtocol", (BoundedProtocol,), {"limits": limits})


class BoundedProtocol(HttpToolsProtocol):
    """A connection within `limits`."""

    limits: ClassVar[Limits]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._running: RequestResponseCycle | None = None
        self._in_headers = True
        self._beside_body = 0  # bytes since the request's start or the last byte of its body
        self._trailer_bytes = 0
        self._problem = (400, "this is not a valid HTTP request")
        self._stopped_parsing = False
        self._is_stream = False  # the answer's end is open
        self._ended = False  # the client has ended its side,
        self._gone = False  # and does not wait for an answer
        self._deadline: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Told of every byte that is not yet with the kernel, `send` can wait until none is left.
        transport.set_write_buffer_limits(high=0)
        connection = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_IN_KERNEL)
        self._client = ClientTransport(transport, self.loop, self.limits.answer_seconds)
        super().connection_made(self._client)  # type: ignore[arg-type]
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._probe_timer):
            if timer is not None:
                timer.cancel()
        self._client.lost()
        if self._running is not None:
            _disconnect(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self._client.discard(len(data))
            return
        if self._stopped_parsing:
            return
        if self._in_headers and self._deadline is None:
            self._set_deadline()
        self._beside_body += len(data)
        super().data_received(data)
        # What is complete has been counted to the byte; this bounds a line that never ends.
        if self._beside_body > self.limits.header_bytes:
            self._refuse(431, self._headers_too_large)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for what is still to be answered: a client may end its side first."""
        if self.transport.is_closing():
            return False
        self._ended = True
        if self._is_busy:
            self.cycle.keep_alive = False
            self._wake()
            self._probe_later()
            return True
        if self._beside_body:
            self._refuse(400, "the connection ended within the headers")
        return False

    # The parser's callbacks; what one raises ends the parsing and comes to `send_400_response`.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:
            super().on_header(name, value)
            return
        # A trailer. It is dropped: what comes after the body must not pass for a header.
        self._trailer_bytes += len(name) + len(value) + 4
        self._check_header_bytes(self._trailer_bytes)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._drop_deadline()
        self._beside_body = self._trailer_bytes = 0
        size = sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._check_header_bytes(len(self.url) + size)
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests wait on this connection")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_headers = True
        self._beside_body = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(*self._problem)

    # A request

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, partial(self._serve, cycle, app))
        if self._ended:
            self._probe_later()

    async def _serve(
        self, cycle: RequestResponseCycle, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def next_message() -> Message:
            if self._is_cut_short(cycle) and not cycle.body:
                return {"type": "http.disconnect"}
            message = await receive()
            if cycle.response_complete:
                # Starlette ends a stream at this message, so it waits for the stream's last bytes.
                await self.flow.drain()
            elif self._is_cut_short(cycle) and not message.get("body"):
                return {"type": "http.disconnect"}
            return message

        async def send_out(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._prepare_answer(cycle, message)
            elif self._is_stream and cycle.chunked_encoding is False:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)
            await self.flow.drain()

        await app(scope, next_message, send_out)
        if self._is_cut_short(cycle) and not cycle.response_complete:
            if not cycle.response_started:
                self._write_failure(400, "the connection ended before the request was complete")
            _disconnect(cycle)
            self.transport.close()

    def _prepare_answer(self, cycle: RequestResponseCycle, start: Message) -> None:
        names = [name.lower() for name, _ in start.get("headers", ())]
        self._is_stream = b"content-length" not in names
        if self._is_stream and cycle.scope["http_version"] == "1.0":
            # It knows no chunks: the answer ends with the connection.
            cycle.chunked_encoding = False
        if cycle.more_body:
            # The rest of the body is of no use: it is thrown away, then the connection ends.
            cycle.keep_alive = False
        if cycle.more_body or self.pipeline:
            self._client.lingers = not self._ended

    def _is_cut_short(self, cycle: RequestResponseCycle) -> bool:
        """Whether the client has ended its side before its body's end, or has left for good.

        Who reads a stream, whose end is open, has left when it ends its side.
        """
        streamed = cycle.response_started and self._is_stream
        return self._ended and (cycle.more_body or streamed or self._gone)

    def _probe_later(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self._probe_timer = self.loop.call_later(PROBE_SECONDS, self._probe)

    def _probe(self) -> None:
        """Find out whether a client that has ended its side still waits for its answer.

        It passes over an interim response, and the system of one that has left answers by a reset.
        HTTP/1.0 knows none: who speaks it gets what can be answered at once, and has then left.
        """
        cycle = self._running
        if cycle is None or cycle.response_started or self.transport.is_closing():
            return
        if cycle.scope["http_version"] == "1.0":
            self._gone = True
            self._wake()
            return
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._probe_later()

    def _wake(self) -> None:
        """Let the application find the end of what it waits for."""
        for cycle in (self._running, self.cycle):
            if cycle is not None:
                cycle.message_event.set()

    @property
    def _is_busy(self) -> bool:
        """Whether a request on this connection is still being answered."""
        return self._running is not None and not self._running.response_complete

    # Limits

    @property
    def _headers_too_large(self) -> str:
        return f"the headers are over {self.limits.header_bytes // 1024} KiB"

    def _check_header_bytes(self, size: int) -> None:
        if size > self.limits.header_bytes:
            self._problem = (431, self._headers_too_large)
            raise ValueError(self._headers_too_large)

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.limits.header_seconds, self._out_of_time)

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _out_of_time(self) -> None:
        self._deadline = None
        if not self._beside_body:
            self.transport.close()
        elif not self._is_busy:
            seconds = self.limits.header_seconds
            self._refuse(408, f"the headers were not complete within {seconds:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no request, or end the connection after what is being answered."""
        if self.transport.is_closing():
            return
        self._drop_deadline()
        self._stopped_parsing = True
        cycle = self._running
        if cycle is not None and self._is_busy:
            if not cycle.more_body:
                # It is the next request that is wrong: the one before still gets its answer.
                cycle.keep_alive = False
                self._client.lingers = True
                return
            _disconnect(cycle)
        if cycle is None or not self._is_busy or not cycle.response_started:
            self._write_failure(status, message)
        self._client.lingers = not self._ended
        self.transport.close()

    def _write_failure(self, status: int, message: str) -> None:
        body = bytes(failure(status, message).body)
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tell the application that nobody waits for its answer any more."""
    if not cycle.response_complete:
        cycle.disconnected = True
    cycle.message_event.set()
