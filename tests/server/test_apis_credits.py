"""What images cost on the other APIs: those that came, once, whoever asks again or leaves."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipelines.errors import GenerationFailed
from pipelines.request import GenerationRequest, GenerationResult
from server.accounts.pricing import price
from server.accounts.types import Balance
from server.api.flow import Answer
from server.errors import ImageStoreAway
from server.http.envelope import json_bytes
from server.img2img.image_store import MemoryStore, RedisStore
from tests.server.apis import PICTURE, SIDE, Apis, message_of
from tests.server.conftest import PATH, MakeClient
from tests.server.databases import sqlite_url
from tests.server.stub_engine import StubEngine, StubHandle
from tests.server.team import Team

PRICE = 4
"""An image of 320 x 320 in 10 steps, in tenths."""


class PartlyFailingEngine(StubEngine):
    """Fails the images of some seeds, and holds back those of others until they are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[int] = set()
        self.held: set[int] = set()

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
        *,
        taken: bool = False,
    ) -> StubHandle:
        super().submit(request, timeout, arrived)
        self.handles[-1] = handle = PartlyFailingHandle(self, request)
        return handle


class PartlyFailingHandle(StubHandle):
    async def result(self) -> GenerationResult:
        engine = self.engine
        assert isinstance(engine, PartlyFailingEngine)
        if self.request.seed in engine.failing:
            raise GenerationFailed("broken")
        while self.request.seed in engine.held and not self.cancelled:
            await asyncio.sleep(0.005)
        return await super().result()

    @property
    def done(self) -> bool:
        engine = self.engine
        assert isinstance(engine, PartlyFailingEngine)
        return self.cancelled or self.request.seed not in engine.held


@pytest.fixture
def engine() -> PartlyFailingEngine:
    return PartlyFailingEngine()


@pytest.fixture
def team(tmp_path: Any) -> Team:
    return Team(sqlite_url(tmp_path))


@pytest.fixture
def apis(make_client: MakeClient, team: Team) -> Apis:
    key = team.make_key(concurrency=10)
    client = make_client(database_url=team.url, cors_origins="*")
    return Apis(client, {"Authorization": f"Bearer {key}"})


Ask = Callable[..., Any]
"""Asks for four images from seed 1 on."""


def ask(apis: Apis, api: str, **headers: str) -> Any:
    fields: dict[str, Any] = {"seed": "1", "headers": headers}
    match api:
        case "openai":
            return apis.edit(n="4", **fields)
        case "openai stream":
            return apis.edit(n="4", stream="true", **fields)
        case "stability":
            return apis.stability(samples="4", **fields)
        case _:
            return apis.img2img(batch_size=2, n_iter=2, **fields)


def seeds_of(api: str, response: Any) -> list[int]:
    """Return the seeds of the images that came."""
    assert response.status_code == 200, response.text
    if api == "openai stream":
        data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        events = [json.loads(text) for text in data]
        made = [event for event in events if event["type"] == "image_edit.completed"]
        return [event["seed"] for event in made if base64.b64decode(event["b64_json"])]
    body = response.json()
    match api:
        case "openai":
            return [item["seed"] for item in body["data"] if base64.b64decode(item["b64_json"])]
        case "stability":
            kinds = {item["finishReason"] for item in body["artifacts"] if item["base64"]}
            assert kinds <= {"SUCCESS"}
            return [item["seed"] for item in body["artifacts"] if item["base64"]]
        case _:
            info = json.loads(body["info"])
            assert len(body["images"]) == len(info["all_seeds"]) == len(info["infotexts"])
            return list(info["all_seeds"])


APIS = ["openai", "openai stream", "stability", "a1111"]


@pytest.mark.parametrize("api", APIS)
def test_what_failed_of_a_batch_is_not_charged(
    apis: Apis, engine: PartlyFailingEngine, team: Team, api: str
) -> None:
    engine.failing = {1, 3}
    response = ask(apis, api)
    assert seeds_of(api, response) == [2, 4]
    if api != "openai stream":  # Its headers are sent before anything is charged.
        assert response.headers["x-credits-charged"] == "0.8"
    assert response.headers["x-model"] == "stub"
    if api == "stability":
        told = [(item["seed"], item["finishReason"]) for item in response.json()["artifacts"]]
        assert told == [(1, "ERROR"), (2, "SUCCESS"), (3, "ERROR"), (4, "SUCCESS")]
    usage = apis.client.get("/api/account/usage", headers=apis.headers).json()["data"]["days"]
    assert [(day["pictures"], day["credits"]) for day in usage] == [(2, "0.8")]
    assert team.balance() == Balance(100 - 2 * PRICE, 0)
    assert team.problems() == []


@pytest.mark.parametrize("api", APIS)
def test_a_batch_that_failed_costs_nothing(
    apis: Apis, engine: PartlyFailingEngine, team: Team, api: str
) -> None:
    engine.failing = {1, 2, 3, 4}
    response = ask(apis, api)
    if api == "openai stream":
        assert "event: error" in response.text
    else:
        assert response.status_code == 500
    assert "x-credits-charged" not in response.headers
    assert team.balance() == Balance(100, 0)


@pytest.mark.parametrize("api", APIS)
def test_an_answer_is_packed_only_where_it_is_kept(
    apis: Apis, monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    packed: list[int] = []
    written: list[int] = []

    def pack(answer: Answer) -> bytes:
        packed.append(len(answer.body))
        return packing(answer)

    def write(body: Any) -> bytes:
        if "data" in body:
            written.append(len(body["data"]))
        return json_bytes(body)

    packing = Answer.packed
    monkeypatch.setattr(Answer, "packed", pack)
    monkeypatch.setattr("server.api.openai.json_bytes", write)
    assert len(seeds_of(api, ask(apis, api))) == 4
    assert packed == []
    # A stream sends its images one by one.
    assert written == ([4] if api == "openai" else [])
    assert len(seeds_of(api, ask(apis, api, **{"Idempotency-Key": "k"}))) == 4
    assert len(packed) == 1


def test_a_batch_that_costs_too_much_says_what_all_of_it_costs(apis: Apis, team: Team) -> None:
    all_cost = 10 * price(1024, 1024, 50)
    response = apis.edit(n="10", steps="50", size="1024x1024")
    assert response.status_code == 402
    said = f"not enough credits: these 10 pictures cost {all_cost / 10:.1f}, 10.0 are left"
    assert message_of(response) == said
    assert response.headers["x-credits-remaining"] == "10.0"
    assert team.balance() == Balance(100, 0)


def test_an_image_alone_is_kept_with_its_headers(apis: Apis, team: Team) -> None:
    headers = {"Idempotency-Key": "k", "Accept": "image/png"}
    first = apis.stability(headers=headers)
    again = apis.stability(headers=headers)
    assert first.content == again.content
    assert first.content.startswith(b"\x89PNG")
    for name in ("content-type", "seed", "finish-reason"):
        assert first.headers[name] == again.headers[name]
    assert apis.stability(headers={"Idempotency-Key": "k"}).status_code == 409
    assert team.balance() == Balance(100 - PRICE, 0)


def test_a_kept_answer_has_new_addresses(apis: Apis, team: Team) -> None:
    headers = {"Idempotency-Key": "k"}
    urls = [
        apis.edit(response_format="url", headers=headers).json()["data"][0]["url"] for _ in range(2)
    ]
    assert urls[0] != urls[1]
    files = [apis.client.get(url) for url in urls]
    assert [file.status_code for file in files] == [200, 200]
    assert files[0].content == files[1].content
    assert apis.client.head(urls[0]).headers["content-type"] == "image/png"
    for wrong in (urls[0] + "x", urls[0].replace("expires=", "expires=x"), urls[0][:-40]):
        assert apis.client.get(wrong).status_code == 404
    assert team.balance() == Balance(100 - PRICE, 0)


class AwayStore(MemoryStore):
    """Is away when images are put into it; also before, if it is told to."""

    def __init__(self, *, always: bool) -> None:
        super().__init__(2**20)
        self.always = always

    async def put(self, name: str, file: bytes, promised: float = 0) -> None:
        raise ImageStoreAway

    async def secret(self) -> bytes:
        if self.always:
            raise ImageStoreAway
        return await super().secret()


def test_a_store_that_is_away_loses_no_image(
    apis: Apis, engine: PartlyFailingEngine, team: Team
) -> None:
    apis.client.app.state.image_store = AwayStore(always=True)  # type: ignore[attr-defined]
    refused = apis.edit(response_format="url")
    assert (refused.status_code, engine.handles) == (503, [])
    assert team.balance() == Balance(100, 0)
    apis.client.app.state.image_store = AwayStore(always=False)  # type: ignore[attr-defined]
    (item,) = apis.edit(response_format="url").json()["data"]
    assert base64.b64decode(item["b64_json"]).startswith(b"\x89PNG")
    assert team.balance() == Balance(100 - PRICE, 0)


def test_a_redis_that_is_away_says_so() -> None:
    async def asked() -> None:
        store = RedisStore("redis://127.0.0.1:1")
        for call in (store.secret(), store.get("x"), store.put("x", b"")):
            with pytest.raises(ImageStoreAway):
                await call
        await store.close()

    asyncio.run(asked())


def test_what_was_finished_at_the_end_of_the_time_is_answered_and_charged(
    make_client: MakeClient, engine: PartlyFailingEngine, team: Team
) -> None:
    engine.held = {3, 4}
    key = team.make_key(concurrency=10)
    client = make_client(database_url=team.url, request_timeout=6.0)
    apis = Apis(client, {"Authorization": f"Bearer {key}"})
    with ThreadPoolExecutor(len(APIS)) as threads:
        answers = list(threads.map(partial(ask, apis), APIS))
    for api, answer in zip(APIS, answers, strict=True):
        assert seeds_of(api, answer) == [1, 2], api
    late = [one for one in engine.handles if one.request.seed in engine.held]
    assert [one.cancelled for one in late] == [True] * 2 * len(APIS)
    assert team.balance() == Balance(100 - 2 * PRICE * len(APIS), 0)
    assert team.problems() == []


@pytest.mark.parametrize("way", ["interrupt", "skip"])
def test_what_was_finished_before_an_interruption_is_charged(
    apis: Apis, engine: PartlyFailingEngine, team: Team, way: str
) -> None:
    engine.held = {3, 4} if way == "interrupt" else {3}
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.append(ask(apis, "a1111")))
    running.start()
    state: dict[str, Any] = {}
    give_up = time.monotonic() + 20
    while state.get("job_no", 0) < (2 if way == "interrupt" else 3):
        assert time.monotonic() < give_up
        told = apis.client.get("/sdapi/v1/progress", headers=apis.headers)
        state = told.json()["state"]
    assert apis.client.post(f"/sdapi/v1/{way}", headers=apis.headers).status_code == 200
    running.join(20)
    left = [1, 2] if way == "interrupt" else [1, 2, 4]
    assert seeds_of("a1111", answers[0]) == left
    assert team.balance() == Balance(100 - len(left) * PRICE, 0)


@pytest.mark.parametrize("way", ["interrupt", "skip"])
def test_what_is_withdrawn_before_any_image_costs_nothing(
    apis: Apis, engine: PartlyFailingEngine, team: Team, way: str
) -> None:
    engine.held = {1, 2, 3, 4}
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.append(ask(apis, "a1111")))
    running.start()
    give_up = time.monotonic() + 20
    while len(engine.handles) < 4 and time.monotonic() < give_up:
        time.sleep(0.005)
    while running.is_alive() and time.monotonic() < give_up:
        apis.client.post(f"/sdapi/v1/{way}", headers=apis.headers)
        time.sleep(0.01)
    assert answers[0].status_code == 200
    assert answers[0].json()["images"] == []
    assert team.balance() == Balance(100, 0)


def test_what_failed_beside_skipped_images_is_a_failure(
    apis: Apis, engine: PartlyFailingEngine, team: Team
) -> None:
    engine.failing, engine.held = {1}, {2, 3, 4}
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.append(ask(apis, "a1111")))
    running.start()
    give_up = time.monotonic() + 20
    while running.is_alive() and time.monotonic() < give_up:
        apis.client.post("/sdapi/v1/skip", headers=apis.headers)
        time.sleep(0.01)
    assert answers[0].status_code == 500
    assert team.balance() == Balance(100, 0)


def test_the_subseeds_told_are_those_of_the_images_that_came(
    apis: Apis, engine: PartlyFailingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def result(self: StubHandle) -> GenerationResult:
        if self.request.variation_seed == 10:
            raise GenerationFailed("broken")
        return GenerationResult(self.request.image, self.request.seed)

    monkeypatch.setattr(PartlyFailingHandle, "result", result)
    response = apis.img2img(seed=5, subseed=10, subseed_strength=0.5, batch_size=3)
    info = json.loads(response.json()["info"])
    assert (info["all_seeds"], info["all_subseeds"]) == ([5, 5], [11, 12])


@pytest.mark.parametrize("key", ["Authorization", "api-key", "basic", "Authentication"])
def test_keys_come_as_each_api_has_them(make_client: MakeClient, key: str) -> None:
    client: TestClient = make_client(api_keys="the-key")
    basic = base64.b64encode(b"any:the-key").decode()
    headers = {"Authorization": f"Basic {basic}"} if key == "basic" else {key: "the-key"}
    assert Apis(client, headers).img2img().status_code == 200
    assert Apis(client, headers).edit().status_code == 200
    assert Apis(client, headers).stability().status_code == 200
    wrong = Apis(client, {"Authorization": "Basic "})
    assert {wrong.img2img().status_code, wrong.edit().status_code} == {401}
    assert "the key is the password of basic authentication" in wrong.img2img().json()["detail"]
    assert "basic authentication" not in wrong.edit().text


def test_the_contract_is_charged_once_whatever_it_accepts(apis: Apis, team: Team) -> None:
    answers = [
        apis.client.post(
            PATH,
            data={"prompt": "a cat", "steps": "10", "width": str(SIDE), "height": str(SIDE)},
            files={"init_image": ("a.png", PICTURE)},
            headers={**apis.headers, "Idempotency-Key": "k", "Accept": accept},
        )
        for accept in ("image/png", "image/png", "text/event-stream")
    ]
    assert answers[0].content == answers[1].content
    assert [answer.headers["content-type"].split(";")[0] for answer in answers] == [
        *("image/png", "image/png", "text/event-stream")
    ]
    assert [answer.headers["x-credits-charged"] for answer in answers] == ["0.4", "0.0", "0.0"]
    assert team.balance() == Balance(100 - PRICE, 0)
