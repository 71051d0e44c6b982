"""Stability's weighted prompts with the stub engine."""

from __future__ import annotations

from typing import Any

import pytest

from server.api import stability_form
from server.errors import InvalidInput
from tests.server.apis import STABILITY, Apis, message_of
from tests.server.conftest import MakeClient
from tests.server.stub_engine import StubEngine

TEXT_TO_IMAGE = f"{STABILITY}/text-to-image"


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([{"text": {"a": 1}}], "text_prompts[0][text]: is no text or number"),
        ([{"text": "a" * 20_000}], "text_prompts[0][text]: is a text of 20000 bytes"),
        (
            [{"text": "a"}, {"text": "(" * 2001, "weight": 0.5}],
            "text_prompts[1][text]: 2001 characters are over 2000",
        ),
        (
            [{"text": "a" * 1001}] * 2,
            "text_prompts: 2002 characters of positive weight are over the 2000 there may be",
        ),
        ([{"text": "a"}, {"text": "b", "weight": "1_0"}], "body.text_prompts[1][weight] must be"),
        ([{"text": "a", "weight": True}], "body.text_prompts[0][weight] must be a number"),
        ([{"text": "a", "weight": -1}], "text_prompts: none has a weight above 0"),
        (["a"], "text_prompts: is no list of objects"),
    ],
)
def test_prompts_that_are_none(apis: Apis, prompts: Any, said: str) -> None:
    response = apis.json(TEXT_TO_IMAGE, {"text_prompts": prompts})
    assert (response.status_code, response.json()["name"]) == (400, "invalid_prompts")
    assert message_of(response).startswith(said)


def test_a_weight_is_not_ended_by_a_bracket_of_its_text(apis: Apis, engine: StubEngine) -> None:
    prompts = [{"text": "a smile :)", "weight": 2}, {"text": "(hat)", "weight": 1.5}]
    assert apis.json(TEXT_TO_IMAGE, {"text_prompts": prompts}).status_code == 200
    assert engine.last_request.prompt == r"(a smile :\):2), ((hat):1.5)"


def test_prompts_that_are_too_long_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability_form, "_closed", None)
    with pytest.raises(InvalidInput, match=r"text_prompts\[49\]\[text\]: 65536 characters"):
        stability_form.combined([("(" * 65536, "0.5")] * 50)


def test_fifty_weighted_prompts_are_taken(apis: Apis, engine: StubEngine) -> None:
    fields = {"cfg_scale": "7", "sampler": "K_EULER", "samples": "1", "seed": "1",
              "image_strength": "0.3", "init_image_mode": "IMAGE_STRENGTH"}  # fmt: skip
    for count in (50, 51):
        for index in range(count):
            fields[f"text_prompts[{index}][text]"] = f"a{index}"
            fields[f"text_prompts[{index}][weight]"] = "0.5"
        response = apis.stability(**fields)
        if count == 50:
            assert response.status_code == 200
            assert engine.last_request.prompt.endswith("(a49:0.5)")
        else:
            assert (response.status_code, response.json()["name"]) == (400, "invalid_prompts")
            assert message_of(response) == "text_prompts: 51 are over the 50 there may be"
