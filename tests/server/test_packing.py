"""An answer that cannot be packed, since others have all places for images, is not charged."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.request import GenerationRequest, Progress
from server.accounts.types import Balance
from server.http.waiting import TimeLimit
from server.img2img.service import Batch, ImageToImage, Outcome
from tests.server.apis import GENERATIONS, PICTURE, Apis
from tests.server.conftest import PATH, MakeClient
from tests.server.databases import sqlite_url
from tests.server.raw_asgi import Message, call
from tests.server.stub_engine import StubEngine, StubHandle
from tests.server.team import Team
from tests.server.test_image_to_image import form_body
from tests.waiting import wait_until

HANGS = 10.0
"""Seconds after which a place is given back to a request that should not wait for it."""
RUN = "r" * 16
EVENTS = {"Accept": "text/event-stream"}


class Hogs:
    """Take all places for images once a request's images are finished, or before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before = False
        self.ends_time = True
        self.taken = threading.Event()
        self.let = threading.Event()
        self.waited_for = False
        finish = ImageToImage.finish

        async def finished(service: ImageToImage, batch: Batch, *more: Any) -> list[Outcome]:
            outcomes = [] if self.before else await finish(service, batch, *more)
            await self.take(service)
            if self.ends_time:
                monkeypatch.setattr(TimeLimit, "remaining", 0.05)
            return outcomes or await finish(service, batch, *more)

        monkeypatch.setattr(ImageToImage, "finish", finished)

    async def take(self, service: ImageToImage) -> None:
        places = service._encoders
        self._tasks = [
            asyncio.create_task(service.in_thread(self._hog))
            for _ in range(int(places.total_tokens))
        ]
        while places.available_tokens:
            await asyncio.sleep(0)
        self.taken.set()

    def _hog(self) -> None:
        self.waited_for |= not self.let.wait(HANGS)


@pytest.fixture
def hogs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hogs]:
    hogs = Hogs(monkeypatch)
    yield hogs
    hogs.let.set()


@pytest.fixture
def team(tmp_path: Any) -> Team:
    return Team(sqlite_url(tmp_path))


@pytest.fixture
def apis(make_client: MakeClient, team: Team) -> Apis:
    return Apis(make_client(database_url=team.url), {"Authorization": team.make_key()})


KEPT = {"Idempotency-Key": "k"}
ANSWERS: dict[str, Callable[[Apis], Any]] = {
    "contract": Apis.contract,
    "contract stream": lambda apis: apis.contract(**EVENTS),
    "run": lambda apis: apis.contract(**EVENTS, **{"X-Run-Id": RUN}),
    "openai": lambda apis: apis.edit(),
    "openai stream": lambda apis: apis.edit(stream="true", headers=KEPT),
    "stability": lambda apis: apis.stability(),
    "a1111": lambda apis: apis.img2img(),
}


@pytest.mark.parametrize("api", ANSWERS)
def test_what_is_not_packed_in_time_is_refused_and_not_charged(
    apis: Apis, team: Team, hogs: Hogs, api: str
) -> None:
    answer = ANSWERS[api](apis)
    assert "the picture was not finished within" in answer.text
    assert answer.status_code == (
        200 if api in ("contract stream", "run", "openai stream") else 504
    )
    assert not hogs.waited_for
    assert team.states() == {"released": 1}
    assert team.balance() == Balance(100, 0)


def test_a_client_that_leaves_before_its_answer_is_packed_is_not_charged(
    apis: Apis, team: Team, hogs: Hogs
) -> None:
    hogs.ends_time = False
    content_type, body = form_body(PICTURE)
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        while not hogs.taken.is_set():
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    async def ended(*asked: Any) -> None:
        try:
            await apis.client.app(*asked)
        finally:
            hogs.let.set()  # or the event loop waits for the threads

    headers = [
        (b"content-type", content_type),
        (b"authorization", apis.headers["Authorization"].encode()),
    ]
    client: Any = SimpleNamespace(app=ended)
    assert call(client, PATH, receive, headers) == []
    assert team.states() == {"released": 1}
    assert team.balance() == Balance(100, 0)


def test_a_run_that_is_withdrawn_before_its_answer_is_packed_is_not_charged(
    apis: Apis, team: Team, hogs: Hogs
) -> None:
    hogs.ends_time = False
    with ThreadPoolExecutor() as pool:
        running = pool.submit(ANSWERS["run"], apis)
        wait_until(hogs.taken.is_set)
        withdrawn = apis.client.delete(f"/api/runs/{RUN}", headers=apis.headers)
        hogs.let.set()
        assert withdrawn.json()["data"] == {"state": "cancelled"}
        assert '"status":409' in running.result().text
    assert team.states() == {"released": 1}
    assert team.balance() == Balance(100, 0)


class ShowingHandle(StubHandle):
    hogs: Hogs

    async def progress(self) -> AsyncIterator[Progress]:
        while not self.hogs.taken.is_set():
            await asyncio.sleep(0.005)
        yield Progress(30, 30, 1, 1, preview=np.zeros((40, 40, 3), np.uint8))


def test_a_partial_image_that_has_no_place_does_not_outlast_the_time(
    apis: Apis, engine: StubEngine, team: Team, hogs: Hogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(request: GenerationRequest, **_: Any) -> StubHandle:
        handle = ShowingHandle(engine, request)
        handle.hogs = hogs
        return handle

    monkeypatch.setattr(engine, "submit", submit)
    hogs.before = True
    body = {"prompt": "a cat", "stream": True, "partial_images": 1, "steps": 10}
    answer = apis.json(GENERATIONS, body)
    assert "the picture was not finished within" in answer.text
    assert not hogs.waited_for
    assert team.balance() == Balance(100, 0)


def test_what_is_charged_is_sent_without_a_place(apis: Apis, team: Team, hogs: Hogs) -> None:
    hogs.ends_time = False
    answer = apis.edit(stream="true")
    assert "event: image_edit.completed" in answer.text
    assert not hogs.waited_for
    assert team.states() == {"settled": 1}
