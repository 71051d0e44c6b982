"""Runs with an id of their client's, on a real server process whose engine only waits."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from starlette.testclient import TestClient

from server.errors import RunWithdrawn
from server.http.waiting import TimeLimit
from server.img2img.image_store import MemoryStore
from server.img2img.runs import MOST_IDS, Runs
from tests.server.apis import Apis
from tests.server.conftest import PATH, MakeClient
from tests.server.databases import sqlite_url
from tests.server.pictures import file_of, gradient
from tests.server.raw_asgi import Message, asked
from tests.server.server_process import ServerProcess, running_server
from tests.server.team import Team
from tests.server.test_image_to_image import form_body

pytestmark = pytest.mark.process

EVENTS = {"Accept": "text/event-stream"}
PRICE = 10
GRACE = 1.5


@dataclass
class Runner:
    """Begins runs as a page does; each goes on until its file is there."""

    server: ServerProcess
    team: Team
    key: str
    folder: Path

    def __post_init__(self) -> None:
        self.id = secrets.token_hex(16)
        self.gate = self.folder / self.id

    @property
    def url(self) -> str:
        return f"{self.server.url}/api/runs/{self.id}"

    def begin(self, **headers: str) -> requests.Response:
        """The stream of a run that the engine has."""
        response = requests.post(
            self.server.url + PATH,
            data={"prompt": str(self.gate), "width": 320, "height": 320, "steps": 10, "seed": 7},
            files={"init_image": ("a.png", file_of(gradient(320, 320)))},
            headers={**EVENTS, "Authorization": self.key, "X-Run-Id": self.id, **headers},
            stream=True,
            timeout=30,
        )
        self.lines = response.iter_lines()
        if response.headers["content-type"].startswith("text/event-stream"):
            assert next(self.lines) == b"event: progress"
        return response

    def result(self) -> dict[str, Any]:
        """What the stream that was begun ends with."""
        return result_of(list(self.lines))

    def ask(self, method: str = "GET", key: str | None = None, **headers: str) -> Any:
        headers["Authorization"] = key or self.key
        return requests.request(method, self.url, headers=headers, timeout=30)

    def withdraw(self) -> str:
        return str(self.ask("DELETE").json()["data"]["state"])

    def finish(self) -> None:
        self.gate.touch()

    def kept(self) -> Any:
        """The answer, once the run has ended."""
        self.team.wait_for({"settled": 1})
        return self.ask().json()


@pytest.fixture(scope="module")
def server_and_team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Team]]:
    folder = tmp_path_factory.mktemp("runs")
    team = Team(f"sqlite:///{folder}/accounts.db")
    team.make_key("first")
    with running_server(
        "tests.server.stub_server", folder, database_url=team.url, run_grace=str(GRACE)
    ) as process:
        process.wait_for("/health/ready")
        yield process, team


@dataclass(frozen=True)
class OwnTeam(Team):
    """The states of the reservations that are new in a test."""

    before: tuple[tuple[str, int], ...] = ()

    def states(self) -> dict[str, int]:
        old = dict(self.before)
        new = {state: count - old.get(state, 0) for state, count in super().states().items()}
        return {state: count for state, count in new.items() if count}


@pytest.fixture
def runner(server_and_team: tuple[ServerProcess, Team], tmp_path: Path) -> Runner:
    server, team = server_and_team
    key = team.make_key(secrets.token_hex(4), concurrency=2)
    own = OwnTeam(team.url, tuple(team.states().items()))
    return Runner(server, own, key, tmp_path)


def result_of(lines: list[bytes]) -> dict[str, Any]:
    at = lines.index(b"event: result")
    envelope = json.loads(lines[at + 1].removeprefix(b"data: "))
    assert isinstance(envelope, dict)
    return envelope


def test_a_run_whose_connection_is_lost_is_found_again(runner: Runner) -> None:
    runner.begin().close()
    time.sleep(0.3)
    with requests.get(
        runner.url, headers={**EVENTS, "Authorization": runner.key}, stream=True, timeout=30
    ) as stream:
        lines = stream.iter_lines()
        assert next(lines) == b"event: progress"
        assert stream.headers["x-model"] == "stub"
        time.sleep(GRACE + 0.5)  # Watched, it goes on beyond the grace time.
        runner.finish()
        told = result_of(list(lines))
    assert told["code"] == 0
    assert told["data"]["seed"] == 7
    # Once more, as an event and as an envelope: the same bytes, paid once.
    assert runner.kept() == told
    again = runner.ask(**EVENTS)
    assert result_of(again.content.splitlines()) == told
    assert again.headers["x-model"] == "stub"
    assert float(told["credits"]["charged"]) > 0
    assert runner.team.states() == {"settled": 1}
    assert runner.team.problems() == []


def test_a_run_that_ends_unwatched_is_kept_and_paid_once(runner: Runner) -> None:
    runner.begin().close()
    runner.finish()
    told = runner.kept()
    assert told["code"] == 0
    time.sleep(GRACE)
    assert runner.ask().json() == told
    # Who has it lets go of it.
    assert runner.withdraw() == "finished"
    assert runner.ask().status_code == 404
    assert runner.team.states() == {"settled": 1}


def test_what_nobody_comes_back_for_is_withdrawn_at_no_charge(runner: Runner) -> None:
    runner.begin().close()
    time.sleep(GRACE / 2)
    assert runner.team.states() == {"open": 1}
    runner.team.wait_for({"released": 1})
    answer = runner.ask()
    assert answer.status_code == 404
    assert answer.json()["message"] == "there is no such run, or not any more"


def test_a_withdrawn_run_ends_at_once_and_is_not_charged(runner: Runner) -> None:
    runner.begin()
    began = time.monotonic()
    assert runner.withdraw() == "cancelled"
    assert time.monotonic() - began < 5
    assert runner.result()["status"] == 409
    runner.team.wait_for({"released": 1})
    assert runner.ask().status_code == 404
    again = runner.begin()  # as a client does by itself, whose connection was lost meanwhile
    assert again.status_code == 409
    assert "Retry-After" not in again.headers
    assert runner.team.states() == {"released": 1}


def test_a_withdrawal_that_overtakes_its_request(runner: Runner) -> None:
    assert runner.withdraw() == "unknown"
    refused = runner.begin()
    assert refused.status_code == 409
    assert "Retry-After" not in refused.headers  # or its client would make it all the same
    assert runner.team.states() == {}
    assert runner.begin().status_code == 409


ID = "x" * 16
LIMIT = TimeLimit(60.0, time.monotonic() + 60.0)


def test_withdrawn_ids_are_bounded_for_each_caller_alone() -> None:
    async def withdraw() -> Runs:
        runs = Runs(60.0, MemoryStore(2**20))
        await runs.withdraw("alice", ID)
        for number in range(3 * MOST_IDS):
            await runs.withdraw("bob", f"{number:016}")
        return runs

    runs = asyncio.run(withdraw())
    with pytest.raises(RunWithdrawn), runs.open("alice", ID, LIMIT):
        pass
    with pytest.raises(RunWithdrawn), runs.open("bob", f"{3 * MOST_IDS - 1:016}", LIMIT):
        pass
    with runs.open("bob", f"{0:016}", LIMIT):
        pass


def test_a_run_that_comes_while_its_withdrawal_looks_for_it_is_withdrawn() -> None:
    with ExitStack() as stack:

        class SlowStore(MemoryStore):
            async def drop(self, name: str) -> bool:
                stack.enter_context(runs.open("alice", ID, LIMIT))
                return False

        runs = Runs(60.0, SlowStore(2**20))
        assert asyncio.run(runs.withdraw("alice", ID)) == "cancelled"


class SlowStore(MemoryStore):
    """Keeps nothing before `let` is set."""

    def __init__(self) -> None:
        super().__init__(2**20)
        self.let = asyncio.Event()

    async def put(self, name: str, file: bytes, promised: float = 0) -> None:
        await self.let.wait()
        await super().put(name, file, promised)


@pytest.mark.parametrize("let_go", [False, True])
def test_an_answer_is_told_before_it_is_kept(client: TestClient, let_go: bool) -> None:
    store = SlowStore()
    client.app.state.runs = Runs(60.0, store)  # type: ignore[attr-defined]
    content_type, body = form_body(file_of(gradient(320, 320)))
    named = [(b"x-run-id", ID.encode()), (b"accept", EVENTS["Accept"].encode())]
    sent: list[Message] = []

    async def ask(method: str = "GET") -> str:
        told: list[Message] = []
        await asked(client, f"/api/runs/{ID}", stays, (), told, method)
        return b"".join(message.get("body", b"") for message in told).decode()

    async def scene() -> None:
        messages: list[Message] = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            return messages.pop() if messages else await stays()

        headers = [(b"content-type", content_type), *named]
        running = asyncio.create_task(asked(client, PATH, receive, headers, sent))
        async with asyncio.timeout(20):
            while not any(b"event: result" in message.get("body", b"") for message in sent):
                await asyncio.sleep(0.005)
        # It is found where it was made until it is kept.
        assert '"code":0' in await ask()
        if let_go:
            assert '"state":"finished"' in await ask("DELETE")
        store.let.set()
        await running
        assert ('"code":0' in await ask()) is not let_go

    asyncio.run(scene())


def test_a_place_is_free_once_the_answer_is_there(make_client: MakeClient, tmp_path: Path) -> None:
    putting, let = threading.Event(), threading.Event()

    class SilentStore(MemoryStore):
        async def put(self, name: str, file: bytes, promised: float = 0) -> None:
            putting.set()
            await asyncio.to_thread(let.wait, 20)

    team = Team(sqlite_url(tmp_path))
    headers = {"Authorization": team.make_key(concurrency=1)}
    apis = Apis(make_client(database_url=team.url), headers)
    apis.client.app.state.runs = Runs(60.0, SilentStore(2**20))  # type: ignore[attr-defined]
    with ThreadPoolExecutor() as pool:
        first = pool.submit(apis.contract, **EVENTS, **{"X-Run-Id": ID})
        try:
            assert putting.wait(20)
            assert apis.contract().status_code == 200
        finally:
            let.set()
        assert result_of(first.result().content.splitlines())["code"] == 0
    assert team.states() == {"settled": 2}
    assert team.problems() == []


async def stays() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_a_run_is_its_keys_alone(runner: Runner) -> None:
    runner.begin()
    other = runner.team.make_key(secrets.token_hex(4))
    assert runner.ask(key=other).status_code == 404
    assert runner.ask("DELETE", key=other).json()["data"] == {"state": "unknown"}
    assert runner.ask(key="wrong").status_code == 401
    runner.finish()
    assert runner.result()["code"] == 0
    assert runner.ask(key=other).status_code == 404


def test_one_id_is_one_run(runner: Runner) -> None:
    runner.begin()
    second = Runner(runner.server, runner.team, runner.key, runner.folder)
    second.id = runner.id
    refused = second.begin()
    assert (refused.status_code, refused.headers["retry-after"]) == (409, "1")
    assert "X-Run-Id" in refused.json()["message"]
    runner.finish()
    assert runner.result()["code"] == 0


def test_a_run_that_is_left_keeps_its_place(runner: Runner) -> None:
    """Or leaving would be a way around the limits of a key."""
    runner.begin().close()
    time.sleep(0.2)
    others = [Runner(runner.server, runner.team, runner.key, runner.folder) for _ in range(2)]
    others[0].begin()
    assert others[1].begin().status_code == 429
    for one in (runner, others[0]):
        one.finish()
    assert others[0].result()["code"] == 0
    runner.team.wait_for({"settled": 2})


@pytest.mark.parametrize("headers", [{"Accept": "*/*"}, {"X-Run-Id": ""}], ids=["plain", "no id"])
def test_who_asks_for_no_run_and_leaves_withdraws(runner: Runner, headers: dict[str, str]) -> None:
    named = {name: value or None for name, value in headers.items()}
    with pytest.raises(requests.RequestException, match="timed out"):
        requests.post(
            runner.server.url + PATH,
            data={"prompt": str(runner.gate)},
            files={"init_image": ("a.png", file_of(gradient(320, 320)))},
            headers={**EVENTS, "Authorization": runner.key, "X-Run-Id": runner.id, **named},
            timeout=0.7,
        )
    runner.team.wait_for({"released": 1}, seconds=5)
    assert runner.ask().status_code == 404


@pytest.mark.parametrize("run_id", ["short", "x" * 129, "a/../../etc/passwd-abc", "é" * 16])
def test_an_id_that_is_none(runner: Runner, run_id: str) -> None:
    answer = runner.begin(**{"X-Run-Id": run_id.encode()})  # type: ignore[arg-type]
    assert answer.status_code == 400
    shown = run_id.encode().decode("latin-1")
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    rule = "is not 16 to 128 letters, digits, - or _"
    assert answer.json()["message"] == f"X-Run-Id: {shown} {rule}"
    assert runner.team.states() == {}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_id_in_a_path_is_blamed_by_its_own_name(client: TestClient, method: str) -> None:
    answer = client.request(method, "/api/runs/short")
    assert answer.status_code == 400
    said = "run_id: short is not 16 to 128 letters, digits, - or _"
    assert answer.json()["message"] == said


def test_a_failure_is_told_to_who_comes_back(
    tmp_path: Path, server_and_team: tuple[ServerProcess, Team], runner: Runner
) -> None:
    settings = {"run_grace": "30", "request_timeout": "1.5", "grace_period": "1", "no_auth": "true"}
    with running_server("tests.server.stub_server", tmp_path, **settings) as server:
        server.wait_for("/health/ready")
        runner.server = server
        runner.begin().close()
        time.sleep(2.0)
        answer = runner.ask()
        assert answer.status_code == 504
        assert answer.json()["message"] == "the picture was not finished within 1.5 s"
        # A server that is told to stop waits for a run as for any request, and ends.
        other = Runner(server, runner.team, "", tmp_path)
        other.begin().close()
        server.terminate()
        assert server.exit_status(20) == 0
