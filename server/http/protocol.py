"""uvicorn's protocol with what it lacks: envelopes for what is no HTTP, limits on what a client may
send beside a body and on how long it may hold a connection, and answers that are not lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from server.http.envelope import failure
from server.http.transport import ClientTransport

MAX_PIPELINED = 16
"""Requests that may wait on a connection for the answer to an earlier one."""

HALF_CLOSED_SECONDS = 1.0
"""Seconds in which the answer to a client that has ended its side must have begun. It may wait, or
have left: nothing tells which, so who waits for longer counts as gone."""

UNSENT_IN_KERNEL = 64 * 1024
"""Bytes of an answer that the kernel takes beyond what is on its way: an answer that nobody reads
stays with us, where it is counted, and a slow reader's progress is seen in small steps."""

_FRAMING = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True)
class Limits:
    """Bytes and seconds that a connection may take.

    Headers or trailers over `header_bytes` are answered 431, headers that have not come after
    `header_seconds` 408; a connection on which nothing was sent at all is then closed silently, and
    one that takes no byte of its answer for `answer_seconds` is cut.
    """

    header_bytes: int
    header_seconds: float
    answer_seconds: float


class BoundedProtocol(HttpToolsProtocol):
    """A connection within `limits`. With these bound, it is a factory for `Config(http=...)`."""

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limits = limits
        self._running: RequestResponseCycle | None = None
        self._in_headers = True
        self._is_head_known = False  # the parser is being told of one again
        self._beside_body = 0  # bytes since the request's start or the last byte of its body
        self._header_bytes = 0  # of the headers or trailers that are complete
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Told of every byte that is not yet with the kernel, `send` can wait until none is left.
        transport.set_write_buffer_limits(high=0)
        connection = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_IN_KERNEL)
        self._client = ClientTransport(transport, self.loop, self.limits.answer_seconds)
        super().connection_made(self._client)  # type: ignore[arg-type]
        self._after(self.limits.header_seconds, self._out_of_time)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._client.lost()
        if self._running is not None:
            _disconnect(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self._client.discard(len(data))
            return
        if self._refused:
            return
        if self._in_headers and self._timer is None:
            self._after(self.limits.header_seconds, self._out_of_time)
        self._beside_body += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        # What is complete has been counted to the byte; this bounds a line that never ends.
        if self._beside_body > self.limits.header_bytes:
            self._refuse_headers()

    def _parse(self, data: memoryview) -> None:
        """Parse what has come; an offer to go on in another protocol is not taken (RFC 9110 7.8).

        The parser takes such a request for one without a body. So another parser goes on behind
        its head: it is given one that says no more than where the body ends.
        """
        while True:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
            lines = [b"POST / HTTP/1.1"]
            lines += [b"%s: %s" % header for header in self.headers if header[0] in _FRAMING]
            lines += [] if self.cycle.keep_alive else [b"Connection: close"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._is_head_known = True
            self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for a while if there is something to answer on it."""
        self._client.ended = True
        if self.transport.is_closing():
            return False
        if self._is_busy:
            self.cycle.keep_alive = False
            self._after(HALF_CLOSED_SECONDS, self._left)
            return True
        if self._beside_body:
            self._refuse(400, "the connection ended within the headers")
        return False

    def shutdown(self) -> None:
        if self._is_busy and not self.transport.is_closing():
            super().shutdown()
            return
        # All is answered: a client that goes on sending is not waited for.
        self._client.lingers = False
        self.transport.close()

    # The parser's callbacks; what one raises ends the parsing and comes to `send_400_response`.

    def on_message_begin(self) -> None:
        if not self._is_head_known:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._is_head_known:
            return
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head_known:
            return
        self._count_header(len(name) + len(value) + 4)
        # A trailer is dropped: what comes after the body must not pass for a header.
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_head_known:
            self._is_head_known = False
            return
        self._in_headers = False
        self._stop_timer()
        self._beside_body = self._header_bytes = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests wait on this connection")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # It only seems so: see `_parse`.
        self._in_headers = True
        self._beside_body = self._header_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not a valid HTTP request")

    def _should_upgrade(self) -> bool:
        return False

    # A request

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, partial(self._serve, cycle, app))

    async def _serve(
        self, cycle: RequestResponseCycle, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def send_out(message: Message) -> None:
            if message["type"] == "http.response.start" and cycle.more_body:
                # The rest of the body is of no use: it is thrown away, then the connection ends.
                cycle.keep_alive = False
            if cycle.more_body or self.pipeline:
                self._client.lingers = True
            await send(message)
            await self.flow.drain()

        await app(scope, receive, send_out)

    @property
    def _is_busy(self) -> bool:
        """Return whether a request on this connection is still being answered."""
        return self._running is not None and not self._running.response_complete

    def _left(self) -> None:
        """End what is not answered yet to a client that has ended its side."""
        cycle = self._running
        if cycle is None or self.transport.is_closing():
            return
        if cycle.response_started and not cycle.chunked_encoding:
            # An answer that is being taken, unlike a stream, whose end is open.
            self._after(HALF_CLOSED_SECONDS, self._left)
        elif cycle.more_body:
            self._refuse(400, "the connection ended before the request was complete")
        else:
            _disconnect(cycle)
            self.transport.close()

    # Limits

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self.limits.header_bytes:
            self._refuse_headers()
            raise ValueError("refused")

    def _refuse_headers(self) -> None:
        self._refuse(431, f"the headers are over {self.limits.header_bytes // 1024} KiB")

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        """Do `then` in so many seconds, instead of what was to be done."""
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out_of_time(self) -> None:
        self._timer = None
        if not self._beside_body:
            self.transport.close()
        elif not self._is_busy:
            seconds = self.limits.header_seconds
            self._refuse(408, f"the headers were not complete within {seconds:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no request, or end the connection after what is being answered."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._stop_timer()
        self._client.lingers = True
        cycle = self._running
        if cycle is not None and self._is_busy:
            if not cycle.more_body:
                # It is the next request that is wrong: the one before still gets its answer.
                cycle.keep_alive = False
                return
            _disconnect(cycle)
        if cycle is None or not self._is_busy or not cycle.response_started:
            self._write_failure(status, message)
        self.transport.close()

    def _write_failure(self, status: int, message: str) -> None:
        body = bytes(failure(status, message).body)
        head = (
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head.encode() + body)


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tell the application that nobody waits for its answer any more."""
    if not cycle.response_complete:
        cycle.disconnected = True
    cycle.message_event.set()
