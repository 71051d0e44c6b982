"""What A1111's API answers: settings as they were used, failures by their own words."""

from __future__ import annotations

import json

import pytest

from pipelines.request import Sampler
from tests.server.apis import Apis, message_of
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
