"""An offer to go on in another protocol changes nothing, however the bytes come in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.server.test_http_protocol import answer, client, run, serving, serving_state

__all__ = ["run"]

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
WEBSOCKET = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
BODY = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n5\r\n%s\r\n%x\r\n%s\r\n0\r\nUpgrade: x\r\n\r\n" % (
    BODY[:5],
    len(BODY) - 5,
    BODY[5:],
)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    await answer(send, 200, f"{scope['method']} {scope['path']} ".encode() + body)


async def next_answer(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert b"connection: close" not in head
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
    return await reader.readexactly(int(length.split()[1]))


def segmentations(data: bytes) -> Iterator[list[bytes]]:
    """Yield the bytes as one, each by itself, and in two at every fourth place."""
    yield [data]
    yield [data[place : place + 1] for place in range(len(data))]
    yield from ([data[:place], data[place:]] for place in range(1, len(data), 4))


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("framed", [LENGTH, CHUNKED], ids=["a length", "chunks"])
def test_requests_are_answered_as_if_nothing_was_offered(
    run: Callable[[Any], Any], offer: bytes, framed: bytes
) -> None:
    requests = [
        b"POST /1 HTTP/1.1\r\nHost: a\r\n" + offer + framed,
        b"GET /2 HTTP/1.1\r\nHost: a\r\n" + offer + b"\r\n",
        b"POST /3 HTTP/1.1\r\nHost: a\r\n" + framed,
        b"POST /4 HTTP/1.1\r\nHost: a\r\n" + offer + b"Content-Length: 0\r\n\r\n",
        b"PUT /5 HTTP/1.1\r\nHost: a\r\n" + offer + framed,
    ]
    expected = [b"POST /1 " + BODY, b"GET /2 ", b"POST /3 " + BODY, b"POST /4 ", b"PUT /5 " + BODY]

    async def scene() -> None:
        async with serving(echo) as address, client(address) as (reader, writer):
            writer.write(requests[1])
            assert await next_answer(reader) == expected[1]
            (connection,) = serving_state[-1].connections
            # Given to the protocol itself: the kernel would join what is sent apart.
            for segments in segmentations(b"".join(requests)):
                for segment in segments:
                    connection.data_received(segment)
                assert [await next_answer(reader) for _ in requests] == expected
            # Over the wire, where the application has begun before the body comes.
            for part in (requests[0][: -len(framed)], framed[:50], framed[50:] + requests[4]):
                writer.write(part)
                await asyncio.sleep(0.02)
            assert [await next_answer(reader) for _ in range(2)] == [expected[0], expected[4]]

    run(scene())


@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        (b"Transfer-Encoding: gzip\r\n", b"", b"400"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\n", b"zz\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\n", b"0\r\n" + b"X-A: b\r\n" * 2000, b"431"),
        (b"Content-Length: 3, 3\r\n", b"abc", b"400"),
    ],
    ids=["not chunked", "length and chunks", "a bad chunk", "trailers", "two lengths"],
)
def test_what_is_wrong_with_a_body_stays_wrong(
    run: Callable[[Any], Any], lines: bytes, body: bytes, status: bytes
) -> None:
    async def scene(offer: bytes) -> bytes:
        async with serving(echo) as address, client(address) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n" + offer + lines + b"\r\n" + body)
            return await asyncio.wait_for(reader.read(), 10)

    received = run(scene(H2C))
    assert received == run(scene(b""))
    assert received.startswith(b"HTTP/1.1 " + status)
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("framed", [LENGTH, CHUNKED], ids=["a length", "chunks"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_nothing_is_read_behind_the_last_request(
    run: Callable[[Any], Any], version: bytes, framed: bytes
) -> None:
    async def scene() -> bytes:
        async with serving(echo) as address, client(address) as (reader, writer):
            head = b"POST /1 HTTP/" + version + b"\r\nHost: a\r\nUpgrade: h2c\r\n"
            writer.write(head + b"Connection: Upgrade, close\r\n" + framed + BODY)
            return await asyncio.wait_for(reader.read(), 10)

    received = run(scene())
    assert b"connection: close" in received
    assert received.endswith(b"\r\n\r\nPOST /1 " + BODY)
    assert received.count(b"HTTP/1.1 200") == 1
