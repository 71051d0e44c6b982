"""What the contract's endpoint answers when a request comes again under its Idempotency-Key."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from fastapi import Request
from starlette.testclient import TestClient

from server.accounts.types import Balance
from server.api import flow
from server.api.flow import Answer
from server.engine_service import LoadedModel
from server.http.envelope import image_body
from tests.server.conftest import PATH, MakeClient
from tests.server.databases import sqlite_url
from tests.server.failures import assert_failure
from tests.server.team import Team

EVENTS = "text/event-stream"


@pytest.fixture
def team(tmp_path: Any) -> Team:
    return Team(sqlite_url(tmp_path))


@pytest.fixture
def post(make_client: MakeClient, team: Team, picture_file: bytes) -> Any:
    client: TestClient = make_client(database_url=team.url)
    key = team.make_key()

    def send(accept: str = "*/*", name: str = "k") -> Any:
        return client.post(
            PATH,
            data={"prompt": "a cat", "width": "320", "height": "320", "steps": "10"},
            files={"init_image": ("a.png", picture_file)},
            headers={"Authorization": key, "Accept": accept, "Idempotency-Key": name},
        )

    return send


def told_in(stream: str) -> Any:
    return json.loads(stream.split("event: result\ndata: ")[1])


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("*/*", "image/jpeg"),
        ("image/webp", "application/json"),
        ("image/png", "image/jpeg"),
        ("image/jpeg", "image/webp"),
    ],
)
def test_another_type_of_file_is_another_request(post: Any, first: str, other: str) -> None:
    made = post(first)
    assert made.status_code == 200
    assert_failure(post(other), 409, "another request")
    again = post(first)
    assert again.content == made.content
    assert again.headers["content-type"] == made.headers["content-type"]


def test_the_same_file_comes_alone_in_json_and_as_an_event(post: Any, team: Team) -> None:
    told = post().json()
    file = base64.b64decode(told["data"]["image"])
    alone = post("image/png")
    assert (alone.content, alone.headers["seed"]) == (file, str(told["data"]["seed"]))
    streamed = told_in(post(EVENTS).text)
    assert streamed.pop("credits") == {"charged": "0.0", "remaining": "9.6"}
    assert streamed == told
    assert team.balance() == Balance(96, 0)


def test_a_stream_that_comes_again_says_what_it_costs_too(post: Any) -> None:
    first, again = (told_in(post(EVENTS).text) for _ in range(2))
    assert first.pop("credits") == {"charged": "0.4", "remaining": "9.6"}
    assert again.pop("credits") == {"charged": "0.0", "remaining": "9.6"}
    assert first == again


@pytest.mark.parametrize("accept", ["*/*", "image/png", EVENTS])
def test_the_model_is_the_one_that_made_the_image(
    post: Any, accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert post(accept).headers["x-model"] == "stub"
    serve_another(monkeypatch)
    assert post(accept).headers["x-model"] == "stub"
    assert post(accept, "another").headers["x-model"] == "another"


def serve_another(monkeypatch: pytest.MonkeyPatch) -> None:
    in_service = flow.model_in_service

    def another(request: Request) -> LoadedModel:
        return replace(in_service(request), name="another")

    monkeypatch.setattr(flow, "model_in_service", another)


def test_answers_that_versions_before_kept_are_read() -> None:
    body = image_body(b"AAAA", 7)
    assert Answer.unpacked(body) == Answer(body)
