"""What A1111's API answers: settings as they were used, failures by their own words."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipelines.errors import GenerationCancelled
from pipelines.request import GenerationResult, Sampler
from tests.server.apis import BASE64, SIDE, Apis, message_of
from tests.server.conftest import MakeClient
from tests.server.stub_engine import StubEngine, StubHandle
from tests.waiting import wait_until


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


def test_info_has_the_prompts_that_were_used(apis: Apis, engine: StubEngine) -> None:
    answer = apis.img2img(styles=["Anime", "odd"], negative_prompt="dog", batch_size=2).json()
    info, used = json.loads(answer["info"]), engine.last_request
    assert used.prompt != "a cat"
    assert (info["prompt"], info["all_prompts"]) == (used.prompt, [used.prompt] * 2)
    assert info["negative_prompt"] == used.negative_prompt
    assert info["all_negative_prompts"] == [used.negative_prompt] * 2
    assert info["styles"] == ["anime"]


@pytest.mark.parametrize("job", ["img2img", "txt2img"])
def test_the_state_has_what_runs_and_what_is_being_skipped(
    apis: Apis, engine: StubEngine, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """An image that is skipped ends with the step that is under way."""

    async def result(self: StubHandle) -> GenerationResult:
        while engine.holding:
            await asyncio.sleep(0.005)
        if self.cancelled:
            raise GenerationCancelled("withdrawn")
        return GenerationResult(self.request.image, self.request.seed)

    monkeypatch.setattr(StubHandle, "result", result)
    monkeypatch.setattr(StubHandle, "done", property(lambda self: not engine.holding))
    engine.holding = True
    body = {"prompt": "a cat", "steps": 10, "width": SIDE, "height": SIDE, "batch_size": 2}
    body |= {"init_images": [BASE64]} if job == "img2img" else {}

    def state() -> Any:
        return apis.client.get("/sdapi/v1/progress").json()["state"]

    with ThreadPoolExecutor(1) as threads:
        try:
            asked = threads.submit(apis.json, f"/sdapi/v1/{job}", body)
            wait_until(lambda: state()["job"] == job)
            assert state()["skipped"] is False
            apis.client.post("/sdapi/v1/skip")
            assert (state()["skipped"], state()["interrupted"]) == (True, False)
            apis.client.post("/sdapi/v1/interrupt")
            assert (state()["skipped"], state()["interrupted"]) == (False, True)
        finally:
            engine.holding = False
        assert asked.result(20).json()["images"] == []
    assert (state()["job"], state()["skipped"]) == ("", False)


def test_png_info_has_the_settings_by_name(apis: Apis) -> None:
    made = apis.img2img(seed=7).json()["images"][0]
    told = apis.json("/sdapi/v1/png-info", {"image": made}).json()
    found = told["parameters"]
    assert (found["Prompt"], found["Seed"], found["Size-1"]) == ("a cat", "7", "320")
    assert told["items"] == {"parameters": told["info"]}


@pytest.mark.parametrize(("method", "path"), [("GET", "nothing"), ("POST", "detect")])
def test_controlnets_failures_have_detail(apis: Apis, method: str, path: str) -> None:
    answer = apis.client.request(method, f"/controlnet/{path}")
    assert answer.status_code in (404, 405)
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "detail", "said"),
    [
        ({"sampler_name": "odd"}, "Sampler not found", "sampler 'odd' is not supported; near it: "),
        ({"scheduler": "Beta"}, "Scheduler not found", "scheduler 'Beta' is not supported: the "),
        ({"scheduler": "odd"}, "Scheduler not found", "there are Automatic, Karras, Exponential"),
    ],
)
def test_an_unknown_name_is_told_for_what_it_is(
    apis: Apis, fields: dict[str, str], detail: str, said: str
) -> None:
    answer = apis.img2img(**fields)
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith(detail)
    assert said in message_of(answer)


def test_who_cuts_a_samplers_name_asks_again(apis: Apis, engine: StubEngine) -> None:
    """SdPaint does so, on the status."""
    assert apis.img2img(sampler_name="Euler", scheduler="a").status_code == 404
    assert apis.img2img(sampler_name="Euler a").status_code == 200
    assert engine.last_request.sampler is Sampler.K_EULER_ANCESTRAL
