"""What the server and its decoders send each other, over pipes.

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


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], bytearray] | None:
    """Return the next header and payload, or None at the end of the stream."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_length, payload_length = _LENGTHS.unpack(lengths)
    if max(header_length, payload_length) > _MOST_BYTES:
        return None
    text = stream.read(header_length)
    payload = bytearray(payload_length)
    view, got = memoryview(payload), 0
    while got < payload_length:
        count = stream.readinto(view[got:])  # type: ignore[attr-defined]
        if not count:
            return None
        got += count
    return json.loads(text), payload
