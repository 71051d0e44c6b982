"""Keys and credits over HTTP, on both databases, with the stub engine."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from pipelines.errors import (
    DeadlineExceeded,
    EngineBusy,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
)
from scripts.services.throwaway_postgres import Postgres
from server.accounts import admission
from server.accounts.api_keys import KeyStore
from server.accounts.key_text import make_key
from server.accounts.types import Balance
from server.observability.logs import JsonFormatter, TextFormatter, configure_logging
from tests.server.conftest import PATH, MakeClient
from tests.server.databases import new_postgres_database
from tests.server.failures import assert_failure
from tests.server.stub_engine import StubEngine
from tests.server.team import Team

SMALL = {"width": "320", "height": "320", "steps": "10"}
"""A picture of 0.4 credits."""

Post = Callable[..., Any]


@pytest.fixture
def team(database_url: str) -> Team:
    return Team(database_url)


@pytest.fixture
def post(picture_file: bytes) -> Post:
    def send(client: TestClient, key: str, *, headers: Any = None, **fields: str) -> Any:
        return client.post(
            PATH,
            data={"prompt": "a cat", **SMALL, **fields},
            files={"init_image": ("a.png", picture_file)},
            headers={"Authorization": key, **(headers or {})},
        )

    return send


def test_a_picture_is_charged(make_client: MakeClient, team: Team, post: Post) -> None:
    key = team.make_key(rate="30/minute", concurrency=4)
    client = make_client(database_url=team.url)
    response = post(client, key)
    assert response.status_code == 200
    assert response.headers["x-credits-charged"] == "0.4"
    assert response.headers["x-credits-remaining"] == "9.6"
    assert response.headers["x-request-id"]
    assert post(client, key, width="1536", height="1536", steps="50").status_code == 200
    assert team.balance() == Balance(76, 0)
    assert team.problems() == []
    account = client.get("/api/account", headers={"Authentication": key}).json()
    assert account == {
        "code": 0,
        "message": "success",
        "data": {
            "name": "alice",
            "credits": {"balance": "7.6", "reserved": "0.0"},
            "limits": {"rate": "30 per 1 minute", "concurrency": 4},
        },
    }
    usage = client.get("/api/account/usage?days=2", headers={"Authorization": key}).json()["data"]
    (day,) = usage["days"]
    assert (day["pictures"], day["credits"]) == (2, "2.4")
    assert day["day"] == time.strftime("%Y-%m-%d", time.gmtime())


def test_the_account_needs_a_key_and_sane_days(
    make_client: MakeClient, team: Team, post: Post
) -> None:
    key = team.make_key()
    client = make_client(database_url=team.url)
    for path in ("/api/account", "/api/account/usage"):
        assert_failure(client.get(path), 401, "no API key")
        assert_failure(client.get(path, headers={"Authorization": make_key()}), 401, "not known")
    for days, said in (
        ("0", "days: 0 is not in 1..366"),
        ("367", "days: 367 is not in 1..366"),
        ("x", "days: x is not a whole number in 1..366"),
        ("", 'days: "" is not a whole number in 1..366'),
    ):
        path = f"/api/account/usage?days={days}"
        answer = client.get(path, headers={"Authorization": key})
        assert assert_failure(answer, 400) == said


def test_without_credits_there_is_no_picture(
    make_client: MakeClient, team: Team, post: Post, engine: StubEngine
) -> None:
    key = team.make_key(tenths=7)
    client = make_client(database_url=team.url)
    assert post(client, key).status_code == 200
    response = post(client, key)
    assert_failure(response, 402, "costs 0.4, 0.3 are left")
    assert response.headers["x-credits-remaining"] == "0.3"
    assert len(engine.handles) == 1
    assert team.balance() == Balance(3, 0)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (GenerationFailed("broken"), 500),
        (RuntimeError("unforeseen"), 500),
        (DeadlineExceeded("late"), 504),
        (GenerationCancelled("withdrawn"), 503),
    ],
)
def test_a_failure_costs_nothing(
    make_client: MakeClient,
    team: Team,
    post: Post,
    engine: StubEngine,
    outcome: Exception,
    status: int,
) -> None:
    key = team.make_key()
    client = make_client(database_url=team.url)
    engine.outcome = outcome
    response = post(client, key, headers={"Idempotency-Key": "k"})
    assert_failure(response, status)
    assert "x-credits-charged" not in response.headers
    assert team.balance() == Balance(100, 0)
    assert team.states() == {"released": 1}
    engine.outcome = None
    again = post(client, key, headers={"Idempotency-Key": "k"})
    assert again.status_code == 200  # the key is free for another try
    assert team.balance() == Balance(96, 0)
    assert team.problems() == []


def test_what_never_begins_costs_nothing(
    make_client: MakeClient, team: Team, post: Post, engine: StubEngine
) -> None:
    key = team.make_key()
    client = make_client(database_url=team.url)
    assert_failure(post(client, key, steps="5"), 400)
    assert team.states() == {}
    refusal: GenerationError = EngineBusy("busy", 3.0)
    engine.refusal = refusal
    assert_failure(post(client, key), 503)
    assert team.states() == {"released": 1}
    assert team.balance() == Balance(100, 0)


def test_the_same_request_is_answered_again_for_nothing(
    make_client: MakeClient, team: Team, post: Post, engine: StubEngine
) -> None:
    key, other = team.make_key(tenths=4), team.make_key("bob", 4)
    client = make_client(database_url=team.url)
    first = post(client, key, headers={"Idempotency-Key": "k"})
    again = post(client, key, headers={"Idempotency-Key": "k"})
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-credits-charged"] == "0.0"
    assert again.headers["x-credits-remaining"] == "0.0"
    assert_failure(
        post(client, key, headers={"Idempotency-Key": "k"}, prompt="a dog"), 409, "another request"
    )
    more = post(client, key, headers={"Idempotency-Key": "k"}, unknown="x")
    assert more.content == first.content
    assert more.headers["x-ignored-fields"] == "unknown"
    assert_failure(post(client, key, headers={"Idempotency-Key": "l"}), 402)
    assert post(client, other, headers={"Idempotency-Key": "k"}, prompt="x").status_code == 200
    assert len(engine.handles) == 2
    assert team.problems() == []


@pytest.mark.parametrize("bad", ["", "x" * 256, "tab\there"])
def test_an_idempotency_key_has_its_form(
    make_client: MakeClient, team: Team, post: Post, bad: str
) -> None:
    key = team.make_key()
    response = post(make_client(database_url=team.url), key, headers={"Idempotency-Key": bad})
    said = "is not 1 to 255 printable ASCII characters"
    shown = {"": '""', "x" * 256: f"{'x' * 60}..."}.get(bad, bad)
    assert assert_failure(response, 400) == f"Idempotency-Key: {shown} {said}"


def test_a_second_request_while_the_first_runs(
    make_client: MakeClient, team: Team, post: Post, engine: StubEngine
) -> None:
    key = team.make_key()
    client = make_client(database_url=team.url)
    engine.holding = True
    with ThreadPoolExecutor() as pool:
        first = pool.submit(post, client, key, headers={"Idempotency-Key": "k"})
        team.wait_for({"open": 1})
        assert team.balance() == Balance(96, 4)
        response = post(client, key, headers={"Idempotency-Key": "k"})
        assert_failure(response, 409, "has not ended yet")
        assert response.headers["retry-after"] == "1"
        engine.holding = False
        assert first.result().status_code == 200
    assert team.balance() == Balance(96, 0)


def test_a_stream_is_charged_too(
    make_client: MakeClient, team: Team, post: Post, engine: StubEngine
) -> None:
    key = team.make_key()
    client = make_client(database_url=team.url)
    headers = {"Accept": "text/event-stream", "Idempotency-Key": "k"}
    answer = post(client, key, headers=headers).text.split("event: result\ndata: ")[1]
    result = json.loads(answer)
    assert result["code"] == 0
    assert result.pop("credits") == {"charged": "0.4", "remaining": "9.6"}
    assert team.balance() == Balance(96, 0)
    plain = post(client, key, headers={"Idempotency-Key": "k"})
    assert plain.json() == result
    engine.outcome = GenerationFailed("broken")
    failed = post(client, key, headers={"Accept": "text/event-stream"})
    assert '"code":-1' in failed.text
    assert team.states() == {"settled": 1, "released": 1}
    assert team.balance() == Balance(96, 0)


def test_keys_without_credits(make_client: MakeClient, team: Team, post: Post) -> None:
    key = team.make_key(tenths=0)
    client = make_client(database_url=team.url, credits="off")
    response = post(client, key, headers={"Idempotency-Key": "k"})
    assert response.status_code == 200
    assert "x-credits-charged" not in response.headers
    assert post(client, key, headers={"Idempotency-Key": "k"}).content == response.content
    data = client.get("/api/account", headers={"Authorization": key}).json()["data"]
    assert data["credits"] is None
    (day,) = client.get("/api/account/usage", headers={"Authorization": key}).json()["data"]["days"]
    assert (day["pictures"], day["credits"]) == (1, "0.0")
    assert_failure(post(client, make_key()), 401)


def test_listed_keys_have_no_account(make_client: MakeClient, team: Team, post: Post) -> None:
    team.make_key()
    client = make_client(database_url=team.url, api_keys="listed-key")
    response = post(client, "listed-key")
    assert response.status_code == 200
    assert "x-credits-charged" not in response.headers
    data = client.get("/api/account", headers={"Authorization": "listed-key"}).json()["data"]
    assert data == {
        "name": "listed key 1",
        "credits": None,
        "limits": {"rate": None, "concurrency": None},
    }
    usage = client.get("/api/account/usage", headers={"Authorization": "listed-key"})
    assert usage.json()["data"]["days"] == []
    assert team.states() == {}


def test_revoking_and_rotating_hold_at_once(
    make_client: MakeClient, team: Team, post: Post
) -> None:
    key = team.make_key()
    client = make_client(database_url=team.url)
    newer = team.do(lambda database: KeyStore(database).rotate("alice", 3600))
    assert post(client, key).status_code == post(client, newer).status_code == 200
    newest = team.do(lambda database: KeyStore(database).rotate("alice", 0))
    assert_failure(post(client, key), 401)
    assert_failure(post(client, newer), 401)
    assert post(client, f"Bearer {newest}").status_code == 200
    team.do(lambda database: KeyStore(database).revoke("alice"))
    assert_failure(post(client, newest), 401)
    assert team.balance() == Balance(88, 0)


def test_the_rate_of_a_key(make_client: MakeClient, team: Team, post: Post) -> None:
    key, other = team.make_key(rate="2/hour"), team.make_key("bob")
    client = make_client(database_url=team.url, rate="3/hour")
    first = post(client, key)
    assert first.headers["ratelimit-policy"] == '"key";q=2;w=3600'
    assert first.headers["ratelimit-limit"] == "2"
    assert first.headers["ratelimit-remaining"] == "1"
    assert 3590 <= int(first.headers["ratelimit-reset"]) <= 3600
    assert_failure(post(client, key, steps="5"), 400)
    refused = post(client, key)
    assert_failure(refused, 429, "2 per 1 hour")
    assert refused.headers["ratelimit"].startswith('"key";r=0;t=')
    assert 3500 <= int(refused.headers["retry-after"]) <= 3600
    assert [post(client, other).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert client.get("/api/account", headers={"Authorization": key}).status_code == 200


def test_the_concurrency_of_a_key(
    make_client: MakeClient, team: Team, post: Post, engine: StubEngine
) -> None:
    key, other = team.make_key(concurrency=2), team.make_key("bob")
    client, second = make_client(database_url=team.url), make_client(database_url=team.url)
    engine.holding = True
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(post, client, key) for _ in range(2)]
        team.wait_for({"open": 2})
        assert_failure(post(client, key), 429, "2 requests at the same time")
        # Another server on the same database knows of them too.
        assert_failure(post(second, key), 429, "2 requests at the same time")
        running.append(pool.submit(post, client, other))
        team.wait_for({"open": 3})
        engine.holding = False
        assert [response.result().status_code for response in running] == [200, 200, 200]
    assert post(client, key).status_code == 200


def test_guessing_is_slowed_down_by_address(
    make_client: MakeClient, team: Team, post: Post
) -> None:
    key = team.make_key()
    client = make_client(database_url=team.url, api_keys="listed", auth_failures="3/hour")
    for _ in range(3):
        assert_failure(post(client, "guess"), 401)
    assert_failure(post(client, "guess"), 429, "too many wrong API keys")
    assert_failure(post(client, make_key()), 429)
    assert_failure(post(client, "listed"), 429)  # it might have been guessed
    assert post(client, key).status_code == 200
    assert_failure(client.post(PATH), 401, "no API key")


def test_the_database_is_away_at_the_start(
    make_client: MakeClient, tmp_path: Path, post: Post
) -> None:
    obstacle = tmp_path / "folder"
    obstacle.write_text("a file where the database's folder should be")
    team = Team(f"sqlite:///{obstacle}/accounts.db")
    client = make_client(database_url=team.url)
    assert_failure(post(client, make_key()), 503, "the accounts cannot be reached")
    obstacle.unlink()
    key = team.make_key()
    give_up = time.monotonic() + 20
    while (response := post(client, key)).status_code == 503 and time.monotonic() < give_up:
        time.sleep(0.1)
    assert response.status_code == 200


@pytest.mark.slow("kill")
def test_postgresql_goes_away_under_a_request(
    make_client: MakeClient,
    postgres: Postgres,
    post: Post,
    engine: StubEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = admission.SETTLE_DELAYS
    with new_postgres_database(postgres) as url:
        team = Team(url)
        key = team.make_key()
        client = make_client(database_url=url)
        engine.holding = True
        with ThreadPoolExecutor() as pool:
            running = pool.submit(post, client, key)
            team.wait_for({"open": 1})
            postgres.stop()
            monkeypatch.setattr(admission, "SETTLE_DELAYS", tries[:2])  # sooner at their end
            engine.holding = False
            # A picture was made, but could not be charged: it is not given.
            assert_failure(running.result(), 503, "the accounts cannot be reached")
            assert_failure(post(client, key), 503)
        postgres.start()
        monkeypatch.setattr(admission, "SETTLE_DELAYS", tries)
        team.wait_for({"refunded": 1})
        assert post(client, key).status_code == 200
        assert team.balance() == Balance(96, 0)
        assert team.problems() == []
        engine.holding = True
        with ThreadPoolExecutor() as pool:
            running = pool.submit(post, client, key)
            team.wait_for({"refunded": 1, "settled": 1, "open": 1})
            postgres.stop()
            engine.holding = False
            threading.Timer(0.5, postgres.start).start()
            # An outage shorter than the tries to settle costs no picture.
            assert running.result().status_code == 200
        assert team.balance() == Balance(92, 0)


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_no_key_reaches_logs_or_answers(
    make_client: MakeClient,
    team: Team,
    post: Post,
    engine: StubEngine,
    formatter: logging.Formatter,
) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    key, unknown = team.make_key(rate="20/minute"), make_key()
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)
    client = make_client(database_url=team.url, auth_failures="2/hour")
    answers = [post(client, key), post(client, key, headers={"Idempotency-Key": "k"})]
    answers.append(client.post(f"{PATH}?key={key}", headers={"Authorization": f"Bearer {key}"}))
    for outcome in (GenerationFailed("broken"), RuntimeError("unforeseen")):
        engine.outcome = outcome
        answers.append(post(client, key))
    answers += [post(client, unknown) for _ in range(3)]
    answers += [
        client.get(path, headers={"Authentication": key})
        for path in ("/api/account", "/api/account/usage", "/health/ready", "/openapi.json")
    ]
    team.do(lambda database: KeyStore(database).revoke("alice"))
    answers.append(post(client, key))
    assert "server.access" in written.getvalue()
    assert "broken" in written.getvalue()
    for secret in (key, unknown):
        # Neither whole nor in part: the checksum and the prefix are no secrets.
        assert secret[4:20] not in written.getvalue()
        for answer in answers:
            assert secret[4:20] not in answer.text
            assert secret[4:20] not in str(answer.headers)


def test_debug_logs_hold_nothing_that_a_client_sent(
    make_client: MakeClient, team: Team, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging("debug", "text")
    key = team.make_key()
    client = make_client(database_url=team.url)
    picture = PngInfo()
    picture.add_text("Comment", "secret-comment")
    file = io.BytesIO()
    Image.new("RGB", (320, 320)).save(file, "PNG", pnginfo=picture)
    sent = client.post(
        PATH,
        data={"prompt": "secret-prompt", "unknown": "secret-field", **SMALL},
        files={"init_image": ("secret-name.png", file.getvalue())},
        headers={"Authorization": key, "Idempotency-Key": "secret-idempotency"},
    )
    assert sent.status_code == 200
    again = post(client, key, headers={"Idempotency-Key": "secret-idempotency"})
    assert_failure(again, 409)
    client.get("/health/live")
    log = written.getvalue()
    assert "level=debug logger=server.access" in log
    assert "path=/health/live" in log
    assert "secret-" not in log
    assert key[4:20] not in log
    assert hashlib.sha256(key.encode()).hexdigest() not in log
