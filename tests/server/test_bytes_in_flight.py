"""What is held for clients is counted to the byte, and given back on every way out."""

from __future__ import annotations

import asyncio
import base64
import random
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from server.api import values
from server.http.bytes_in_flight import ByteBudget, BytesInFlight
from server.http.errors import Unavailable
from server.http.multipart import Part, read_form
from server.settings import MIB, Settings
from tests.server.apis import SIDE, Apis
from tests.server.conftest import PATH, MakeClient
from tests.server.databases import sqlite_url
from tests.server.pictures import file_of
from tests.server.stub_engine import StubEngine
from tests.server.team import Team

App = Callable[[Scope, Receive, Send], Awaitable[None]]
SCOPE = {"type": "http"}


async def upload() -> Message:
    return {"type": "http.request", "body": b"x" * 100, "more_body": True}


async def read(receive: Receive) -> None:
    for _ in range(3):
        await receive()


async def reply(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"y" * 50, "more_body": True})
    await send({"type": "http.response.body", "body": b"y" * 20})


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    await read(receive)
    await reply(send)


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    await read(receive)
    raise ZeroDivisionError


async def leaves(scope: Scope, receive: Receive, send: Send) -> None:
    await read(receive)
    raise ClientDisconnect


async def waits(scope: Scope, receive: Receive, send: Send) -> None:
    await read(receive)
    await asyncio.sleep(60)


async def reads_too_much(scope: Scope, receive: Receive, send: Send) -> None:
    while True:
        await receive()


@pytest.mark.parametrize("app", [answers, fails, leaves, waits, reads_too_much])
def test_everything_is_given_back(app: App) -> None:
    budget = ByteBudget(1000)
    held: list[int] = []

    async def send(message: Message) -> None:
        held.append(budget.held)

    async def scene() -> None:
        task = asyncio.ensure_future(BytesInFlight(app, budget)(dict(SCOPE), upload, send))
        await asyncio.sleep(0.02)
        if not task.done():
            assert budget.held == 300
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scene())
    assert budget.held == 0
    if app is answers:
        assert held == [300, 350, 320]


def test_an_answer_that_cannot_be_sent_is_given_back() -> None:
    budget = ByteBudget(1000)

    async def send(message: Message) -> None:
        raise OSError

    with pytest.raises(OSError):
        asyncio.run(BytesInFlight(answers, budget)(dict(SCOPE), upload, send))
    assert budget.held == 0


def test_an_upload_beyond_the_ceiling_is_refused_and_an_answer_is_not() -> None:
    budget = ByteBudget(310)
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(BytesInFlight(answers, budget)(dict(SCOPE), upload, send))
    assert len(sent) == 3
    budget.held = 211
    with pytest.raises(Unavailable) as caught:
        asyncio.run(BytesInFlight(answers, budget)(dict(SCOPE), upload, send))
    assert caught.value.headers == {"Retry-After": "5"}
    assert budget.held == 211


def test_requests_are_counted_while_they_run(
    make_client: MakeClient, engine: StubEngine, picture_file: bytes
) -> None:
    client = make_client(max_bytes_in_flight_mib=32)
    budget: ByteBudget = client.app.state.byte_budget  # type: ignore[attr-defined]
    held: list[int] = []
    submit = engine.submit

    def watch(*args: Any, **options: Any) -> Any:
        held.append(budget.held)
        return submit(*args, **options)

    engine.submit = watch  # type: ignore[method-assign]
    form: Any = {"data": {"prompt": "a"}, "files": {"init_image": ("a", picture_file)}}
    answer = client.post(PATH, **form)
    assert answer.status_code == 200
    assert held == [int(answer.request.headers["content-length"])]
    assert budget.held == 0
    budget.held = budget.ceiling
    refused = client.post(PATH, **form)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "5"
    assert refused.json()["code"] == -1
    assert budget.held == budget.ceiling


def test_what_holds_nothing_is_never_refused() -> None:
    """Such as the end of a body, and the word that the client has left."""
    budget = ByteBudget(10)
    budget.held = 11
    got: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"} if got else {"type": "http.request", "body": b""}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await receive())
        got.append(await receive())

    async def send(message: Message) -> None:
        raise AssertionError

    asyncio.run(BytesInFlight(app, budget)(dict(SCOPE), receive, send))
    assert [message["type"] for message in got] == ["http.request", "http.disconnect"]
    assert budget.held == 11


def test_an_upload_is_let_go_of_while_its_picture_is_made(
    make_client: MakeClient,
    engine: StubEngine,
    picture_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its count and its memory: what waits for the engine has its picture decoded."""
    client = make_client()
    budget: ByteBudget = client.app.state.byte_budget  # type: ignore[attr-defined]
    parts: list[weakref.ref[Part]] = []

    async def read(*args: Any, **options: Any) -> dict[str, Part]:
        form = await read_form(*args, **options)
        parts.extend(map(weakref.ref, form.values()))
        assert budget.held > len(picture_file)
        return form

    monkeypatch.setattr(values, "read_form", read)
    engine.holding = True
    with ThreadPoolExecutor() as pool:
        form: Any = {"data": {"prompt": "a"}, "files": {"init_image": ("a", picture_file)}}
        running = pool.submit(client.post, PATH, **form)
        try:
            give_up = time.monotonic() + 20
            while budget.held or len(parts) != 2 or any(part() for part in parts):
                assert time.monotonic() < give_up, (budget.held, parts)
                time.sleep(0.01)
        finally:
            engine.holding = False
        assert running.result().status_code == 200
    assert budget.held == 0


KEPT = {"Idempotency-Key": "k"}
LONG_TEXT = base64.b64encode(
    file_of(Image.frombytes("RGB", (SIDE, SIDE), random.Random(1).randbytes(3 * SIDE * SIDE)))
).decode()
"""An image that an answer which gives it back holds until then."""
REPEATED: dict[str, Callable[[Apis], Any]] = {
    "contract": lambda apis: apis.contract(**KEPT),
    "openai": lambda apis: apis.edit(headers=KEPT),
    "stability": lambda apis: apis.stability(headers=KEPT),
    "a1111": lambda apis: apis.img2img(
        headers=KEPT, init_images=[LONG_TEXT], include_init_images=True
    ),
}


@pytest.mark.parametrize("api", [*REPEATED, "run"])
def test_an_answer_over_a_ceiling_that_was_lowered_can_still_be_fetched(
    make_client: MakeClient, tmp_path: Path, api: str
) -> None:
    team = Team(sqlite_url(tmp_path))
    apis = Apis(make_client(database_url=team.url), {"Authorization": team.make_key()})
    named = "/api/runs/" + "r" * 16

    def fetch() -> Any:
        if api in REPEATED:
            return REPEATED[api](apis)
        return apis.client.get(named, headers=apis.headers)

    if api == "run":
        apis.contract(**{"X-Run-Id": "r" * 16, "Accept": "text/event-stream"})
    first = fetch()
    budget: ByteBudget = apis.client.app.state.byte_budget  # type: ignore[attr-defined]
    budget.ceiling = len(first.content) - 1
    again = fetch()
    assert (again.status_code, again.content) == (200, first.content)
    budget.ceiling, budget.held = len(first.content) + 1000, 1001
    assert fetch().status_code == 503


def test_the_largest_upload_always_has_room() -> None:
    assert Settings(max_upload_mib=600).max_bytes_in_flight == 601 * MIB
    assert Settings().max_bytes_in_flight == 512 * MIB
