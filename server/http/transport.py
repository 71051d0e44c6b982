"""A connection's sending side: answers that are read although their client still sends, and no more
patience than is allowed with a client that does not read."""

from __future__ import annotations

import asyncio
from typing import Any

LINGER_SECONDS = 30.0
"""Seconds that a client gets to send the rest of a body that nobody reads, as with nginx."""

LINGER_IDLE_SECONDS = 5.0
"""Seconds that it gets from one byte to the next."""

LINGER_BYTES = 128 * 1024 * 1024
"""Bytes of it that are read: several times the largest upload, and under a second of work."""


class ClientTransport:
    """A transport that aborts when nothing of what is written is taken for `stall_seconds`, and
    whose `close`, once `lingers` is set, waits within bounds for the client to end its side.

    A socket that is closed with unread bytes resets the connection, and the reset overtakes the
    answer: a client that sends its whole body before it reads would never see why it was refused.
    So after the answer only the sending side is shut, and what still comes is thrown away.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        stall_seconds: float,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._stall_seconds = stall_seconds
        self._stall_timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._linger_timer: asyncio.TimerHandle | None = None
        self._until = self._heard = 0.0
        self._bytes_left = LINGER_BYTES
        self.lingers = False
        """Return whether the client may still be sending, so that a plain close could lose the
        answer."""
        self.ended = False
        """Return whether the client has ended its side."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write `data`, and watch over what the client's system does not take at once."""
        waiting = self._transport.get_write_buffer_size()
        self._transport.write(data)
        if not waiting:
            self._watch()

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        if not self.lingers or self.ended:
            self._transport.close()
            return
        if self.is_closing():
            return
        self._closing = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._heard = self._loop.time()
        self._until = self._heard + LINGER_SECONDS
        self._linger()

    def discard(self, size: int) -> None:
        """Count `size` bytes that came after `close`, and end the connection over its bounds."""
        self._heard = self._loop.time()
        self._bytes_left -= size
        if self._bytes_left < 0:
            self._transport.close()

    def lost(self) -> None:
        """Drop the timers of a connection that has ended."""
        for timer in (self._stall_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()

    def _watch(self, before: float = float("inf")) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        left = self._transport.get_write_buffer_size()
        if left >= before:
            self._transport.abort()
        elif left:
            self._stall_timer = self._loop.call_later(self._stall_seconds, self._watch, left)

    def _linger(self) -> None:
        due = min(self._until, self._heard + LINGER_IDLE_SECONDS)
        if self._loop.time() >= due:
            self._transport.close()
        else:
            self._linger_timer = self._loop.call_at(due, self._linger)
