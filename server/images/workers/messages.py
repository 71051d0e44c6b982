"""Messages between the server and its decoders, over pipes.

A message is the lengths of its header and its payload, the header in JSON, and the payload: no
pickle, since a decoder that hostile bytes have taken over must not be believed.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

_LENGTHS = struct.Struct(">IQ")
_MOST_BYTES = 1 << 30


class NotNow(Exception):
    """The job is to come back later."""


def write_message(
    stream: IO[bytes], header: dict[str, Any], payload: bytes | bytearray = b""
) -> None:
    """Send a message. Raises OSError where nobody reads."""
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), len(payload)) + text)
    stream.write(payload)
    stream.flush()


def read_message(
    stream: IO[bytes], most: int = _MOST_BYTES
) -> tuple[dict[str, Any], bytearray] | None:
    """Return the next header and payload, or None at the end of the stream.

    Raises ValueError for what is no message, or one of more than ``most`` bytes, before it is read.
    """
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_length, payload_length = _LENGTHS.unpack(lengths)
    if header_length + payload_length > most:
        raise ValueError("a message is too long")
    text = stream.read(header_length)
    if len(text) < header_length:
        return None
    payload = bytearray(payload_length)
    view, got = memoryview(payload), 0
    while got < payload_length:
        count = stream.readinto(view[got:])  # type: ignore[attr-defined]
        if not count:
            return None
        got += count
    try:
        header = json.loads(text)
    except RecursionError:
        raise ValueError("a header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("a header is no object")
    return header, payload
