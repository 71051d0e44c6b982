"""Batches of which an engine takes a part alone."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.errors import EngineBusy, EngineRefused, TooManyTogether
from server.accounts.types import Balance
from tests.server.apis import Apis, message_of
from tests.server.conftest import MakeClient
from tests.server.databases import sqlite_url
from tests.server.stub_engine import StubEngine
from tests.server.team import Team

APIS = [
    ("openai", "n, size"),
    ("openai stream", "n, size"),
    ("stability", "samples"),
    ("a1111", "batch_size, n_iter"),
]


@pytest.fixture
def team(tmp_path: Any) -> Team:
    return Team(sqlite_url(tmp_path))


@pytest.fixture
def apis(make_client: MakeClient, team: Team) -> Apis:
    return Apis(make_client(database_url=team.url), {"Authorization": team.make_key()})


def ask(apis: Apis, api: str) -> Any:
    match api:
        case "stability":
            return apis.stability(samples="4")
        case "a1111":
            return apis.img2img(batch_size=2, n_iter=2)
        case _:
            return apis.edit(n="4", stream="true" if "stream" in api else None)


@pytest.mark.parametrize(("api", "field"), APIS)
def test_more_than_fit_at_any_time_are_refused_by_the_field_that_counts_them(
    apis: Apis, engine: StubEngine, team: Team, api: str, field: str
) -> None:
    engine.room, engine.refusal = 3, TooManyTogether("together they take longer than 300 s")
    response = ask(apis, api)
    assert response.status_code == 400
    assert message_of(response) == (
        f"{field}: 4 images are too many here: together they take longer than 300 s; "
        "at most 3 at a time"
    )
    assert "retry-after" not in response.headers
    assert [handle.cancelled for handle in engine.handles] == [True] * 3
    assert team.balance() == Balance(100, 0)


@pytest.mark.parametrize("refusal", [EngineBusy("64 requests are waiting", 7.0)])
@pytest.mark.parametrize("api", [api for api, _ in APIS])
def test_what_others_stand_in_the_way_of_may_come_again(
    apis: Apis, engine: StubEngine, api: str, refusal: EngineRefused
) -> None:
    engine.room, engine.refusal = 3, refusal
    response = ask(apis, api)
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert [handle.cancelled for handle in engine.handles] == [True] * 3
