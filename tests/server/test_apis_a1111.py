"""What A1111's API answers: settings as they were used, failures by their own words."""

from __future__ import annotations

import json

import pytest

from tests.server.apis import Apis
from tests.server.conftest import MakeClient
from tests.server.stub_engine import StubEngine


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
