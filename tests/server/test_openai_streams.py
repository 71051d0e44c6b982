"""OpenAI's streams say all that its plain answers say; `usage` is that of the images made."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from pipelines.request import Pixels
from server.img2img.moderation import SafetyPolicy
from tests.server.apis import GENERATIONS, Apis, ignored
from tests.server.conftest import MakeClient
from tests.server.databases import sqlite_url
from tests.server.pictures import file_of, gradient
from tests.server.stub_engine import StubEngine
from tests.server.team import Team


class FilteringPolicy:
    """A safety check that no image passes."""

    alive, obstacle = True, None

    def review(self, picture: Pixels, request_id: str) -> tuple[Pixels, bool]:
        return picture, True


def events(response: Any) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


def test_a_stream_tells_what_was_filtered_and_the_credits(
    make_client: MakeClient, engine: StubEngine, tmp_path: Any
) -> None:
    engine.safety = cast(SafetyPolicy, FilteringPolicy())
    team = Team(sqlite_url(tmp_path))
    client = make_client(database_url=team.url)
    apis = Apis(client, {"Authorization": team.make_key()})
    for charged in ("0.8", "0.0"):  # the second time it is the kept answer
        answer = apis.edit(n="2", stream="true", headers={"Idempotency-Key": "k"})
        first, last = events(answer)
        assert first["filtered"] is last["filtered"] is True
        assert "credits" not in first
        assert last["credits"] == {"charged": charged, "remaining": "9.2"}


@pytest.mark.parametrize("stream", [None, "true"])
def test_what_was_not_filtered_and_costs_nothing_is_not_told(apis: Apis, stream: Any) -> None:
    answer = apis.edit(stream=stream)
    told = answer.json()["data"][0] if stream is None else events(answer)[-1]
    assert not {"filtered", "credits"} & told.keys()


@pytest.mark.parametrize("size", [None, "auto", "512x512"])
def test_usage_is_of_the_images_that_are_made(
    make_client: MakeClient, engine: StubEngine, tmp_path: Any, size: str | None
) -> None:
    team = Team(sqlite_url(tmp_path))
    apis = Apis(make_client(database_url=team.url), {"Authorization": team.make_key()})
    files = {"image": ("a.png", file_of(gradient(1024, 512)))}
    usages = []
    for stream in (None, "true"):
        for _ in range(2):  # the second time it is the kept answer
            asked = {"n": "2", "size": size, "stream": stream, "files": files}
            answer = apis.edit(**asked, headers={"Idempotency-Key": f"{stream}"})
            usages.append(events(answer)[0]["usage"] if stream else answer.json()["usage"])
    made = engine.last_request
    tiles = made.width * made.height // 64**2
    assert (tiles == 64) is (size == "512x512")
    assert [usage["input_tokens"] for usage in usages] == [2 + tiles] * 4
    assert [usage["output_tokens"] for usage in usages] == [2 * tiles] * 2 + [tiles] * 2
    assert all(u["total_tokens"] == u["input_tokens"] + u["output_tokens"] for u in usages)


def test_an_http_1_0_client_gets_a_plain_answer(apis: Apis) -> None:
    application = apis.client.app

    async def old(scope: Any, receive: Any, send: Any) -> None:
        await application(scope | {"http_version": "1.0"}, receive, send)  # type: ignore[arg-type]

    apis.client = TestClient(old)
    asked = {"stream": True, "partial_images": 2, "response_format": "url"}
    for answer in (
        apis.edit(stream="true", partial_images="2", response_format="url"),
        apis.json(GENERATIONS, {"prompt": "a cat", "steps": 10, **asked}),
    ):
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["data"][0]["url"]
        assert ignored(answer) == {"stream", "partial_images"}
    assert ignored(apis.edit(stream="false")) == set()
