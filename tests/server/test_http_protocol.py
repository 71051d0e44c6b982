"""The protocol's bounds on a connection, on sockets of this process, with short times."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.http import protocol as http_protocol
from server.http import transport as client_transport
from server.http.protocol import BoundedProtocol, Limits
from server.http.transport import LINGER_BYTES
from tests.server.raw_http import parse_answer

LOOPS = ["asyncio", "uvloop"]
REFUSED = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n"
BIG = b"x" * 8_000_000

serving_state: list[ServerState] = []
"""Of each server that was started, the last one's last."""

App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without reading the body."""
    await answer(send, 404, b"no")


async def answer(send: Send, status: int, body: bytes) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(app: App, **limits: Any) -> AsyncIterator[tuple[str, int]]:
    bounds: Any = {"header_bytes": 8192, "header_seconds": 5.0, "answer_seconds": 5.0} | limits
    protocol: Any = partial(BoundedProtocol, limits=Limits(**bounds))
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None)
    state = ServerState()
    serving_state.append(state)
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            await asyncio.wait_for(asyncio.shield(task), 10)


@asynccontextmanager
async def client(
    address: tuple[str, int],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Runs a coroutine on either event loop that uvicorn may choose."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        return lambda coroutine: asyncio.Runner(loop_factory=uvloop.new_event_loop).run(coroutine)
    return asyncio.run


async def seconds_held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """How long the server takes what is sent, a byte every 50 ms."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        while loop.time() - began < 20:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)
    except OSError:
        pass
    return loop.time() - began


def test_a_body_that_drips_after_its_answer_holds_nothing(
    run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_transport, "LINGER_SECONDS", 1.0)

    async def scene() -> float:
        async with serving(refuse) as address, client(address) as (reader, writer):
            writer.write(REFUSED)
            assert parse_answer(await reader.read()).status == 404
            return await seconds_held(reader, writer)

    assert 0.5 < run(scene()) < 10


def test_a_body_that_stops_after_its_answer_holds_nothing(
    run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_transport, "LINGER_IDLE_SECONDS", 0.3)

    async def scene() -> None:
        async with serving(refuse) as address, client(address) as (reader, writer):
            writer.write(REFUSED)
            await reader.read()
            await asyncio.sleep(1.0)
            with pytest.raises(OSError):
                for _ in range(40):
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.05)

    run(scene())


def test_a_body_without_end_is_not_read_for_ever(
    run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_transport, "LINGER_BYTES", 1_000_000)

    async def scene() -> int:
        async with serving(refuse) as address, client(address) as (reader, writer):
            writer.write(REFUSED)
            await reader.read()
            sent = 0
            try:
                while sent < 60_000_000:
                    writer.write(b"x" * 65536)
                    await writer.drain()
                    sent += 65536
            except OSError:
                pass
            return sent

    assert LINGER_BYTES > 100_000_000
    assert run(scene()) < 60_000_000


def reading_slowly(address: tuple[str, int]) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    connection.connect(address)
    connection.setblocking(False)
    return connection


def test_an_answer_that_nobody_reads_is_cut_off(run: Callable[[Any], Any]) -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, BIG)
        ended.set()

    async def scene() -> None:
        async with serving(app, answer_seconds=0.3) as address:
            with reading_slowly(address) as connection:
                await asyncio.get_running_loop().sock_sendall(
                    connection, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
                )
                await asyncio.wait_for(ended.wait(), 20)

    run(scene())


@pytest.mark.process
def test_a_slow_reader_gets_all_of_it(run: Callable[[Any], Any]) -> None:
    """Its answer takes several times as long as none of it may be taken."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, BIG)

    async def scene() -> int:
        loop = asyncio.get_running_loop()
        async with serving(app, answer_seconds=0.5) as address:
            with reading_slowly(address) as connection:
                await loop.sock_sendall(
                    connection, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                )
                received = 0
                for _ in range(15):
                    await asyncio.sleep(0.1)
                    received += len(await loop.sock_recv(connection, 65536))
                while data := await loop.sock_recv(connection, 1 << 20):
                    received += len(data)
                return received

    assert run(scene()) > len(BIG)


def test_the_application_waits_until_its_answer_is_taken(run: Callable[[Any], Any]) -> None:
    """So what it holds for an answer can be counted to the byte."""
    sent = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, BIG)
        sent.set()

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        async with serving(app) as address:
            with reading_slowly(address) as connection:
                await loop.sock_sendall(connection, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await asyncio.sleep(0.3)
                assert not sent.is_set()
                while not sent.is_set():
                    await loop.sock_recv(connection, 1 << 20)

    run(scene())


def test_who_pipelines_and_leaves_is_noticed(run: Callable[[Any], Any]) -> None:
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async def scene() -> None:
        async with serving(app) as address:
            async with client(address) as (_, writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
                await asyncio.sleep(0.2)
            await asyncio.wait_for(gone.wait(), 10)

    run(scene())


def test_pipelined_requests_are_answered_in_turn_and_their_number_is_bounded(
    run: Callable[[Any], Any],
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)
        await answer(send, 200, scope["path"].encode())

    async def scene(count: int) -> bytes:
        async with serving(app) as address, client(address) as (reader, writer):
            for number in range(count):
                writer.write(b"GET /path%d. HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            writer.write_eof()
            return await reader.read()

    places = [(few := run(scene(5))).find(b"/path%d." % number) for number in range(5)]
    assert -1 not in places
    assert places == sorted(places), few
    assert 1 <= run(scene(3000)).count(b"HTTP/1.1 200") < 100


def test_a_bad_request_behind_a_good_one_does_not_take_its_answer(
    run: Callable[[Any], Any],
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.2)
        await answer(send, 200, b"yes")

    async def scene() -> bytes:
        async with serving(app) as address, client(address) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nthis is not HTTP\r\n\r\n")
            return await reader.read()

    received = run(scene())
    assert parse_answer(received).status == 200
    assert received.count(b"HTTP/1.1 ") == 1


GET = b"GET / HTTP/%s\r\nHost: a\r\n\r\n"


@pytest.mark.process
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("begins", ["nothing", "an answer", "a stream"])
def test_who_ends_its_side_gets_what_has_begun_and_has_left_otherwise(
    run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, version: bytes, begins: str
) -> None:
    monkeypatch.setattr(http_protocol, "HALF_CLOSED_SECONDS", 0.2)
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begins == "an answer":
            headers = [(b"content-length", b"8")]
        else:
            headers = [(b"transfer-encoding", b"chunked")]
        start: Any = {"type": "http.response.start", "status": 200, "headers": headers}
        await receive()
        if begins != "nothing":
            await send(start)
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if begins == "an answer":
            await asyncio.sleep(0.7)
            await send({"type": "http.response.body", "body": b"rest"})
        else:
            assert (await receive())["type"] == "http.disconnect"
            left.set()

    async def scene() -> bytes:
        async with serving(app) as address, client(address) as (reader, writer):
            writer.write(GET % version)
            writer.write_eof()
            received = await asyncio.wait_for(reader.read(), 10)
            if begins != "an answer":
                await asyncio.wait_for(left.wait(), 10)
            return received

    received = run(scene())
    if begins == "an answer":
        assert received.endswith(b"halfrest")
    elif begins == "a stream":
        assert received.endswith(b"4\r\nhalf\r\n")
    else:
        assert received == b""


def test_a_client_that_goes_on_sending_does_not_delay_a_shutdown(
    run: Callable[[Any], Any],
) -> None:
    async def scene() -> float:
        async with serving(refuse) as address, client(address) as (reader, writer):
            writer.write(REFUSED)
            assert parse_answer(await reader.read()).status == 404
            sending = asyncio.ensure_future(seconds_held(reader, writer))
            await asyncio.sleep(0.2)
            (connection,) = serving_state[-1].connections
            connection.shutdown()
            while serving_state[-1].connections:
                await asyncio.sleep(0.01)
            return await sending

    assert run(scene()) < 4


def test_a_shutdown_lets_what_is_being_answered_finish(run: Callable[[Any], Any]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        (connection,) = serving_state[-1].connections
        connection.shutdown()
        await asyncio.sleep(0.1)
        await answer(send, 200, b"yes")

    async def scene() -> bytes:
        async with serving(app) as address, client(address) as (reader, writer):
            writer.write(GET % b"1.1")
            return await asyncio.wait_for(reader.read(), 10)

    assert parse_answer(run(scene())).status == 200
