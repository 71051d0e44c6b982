"""All that is wrong with a request is said at once, on the other APIs too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.apis import STABILITY, Apis, message_of
from tests.server.conftest import MakeClient


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text_prompts[0][weight]": "a"}, ["body.text_prompts[0][weight] must be a number"]),
        ({"text_prompts[0][text]": None}, ["text_prompts: at least one is required"]),
        ({"files": {"other": ("a", b"a")}}, ["init_image: is required"]),
        ({"files": {"init_image": ("a.png", b"")}}, ["init_image: the file is empty"]),
    ],
)
def test_stabilitys_failures_name_all_that_is_wrong(
    apis: Apis, fields: dict[str, Any], said: list[str]
) -> None:
    files = fields.pop("files", None)
    ways: list[dict[str, Any]] = [{}, {"path": "/image-to-image/masking"}]
    for way in ways:
        response = apis.stability(cfg_scale="40", steps="1", files=files, **way, **fields)
        assert response.status_code == 400
        told = message_of(response)
        for one in ("body.cfg_scale must be in", "body.steps must be in", *said):
            assert told.count(one) == 1, told
        assert told.count("init_image") == sum("init_image" in one for one in said)
        if way:
            assert "mask_source" in told
            assert told.count("mask_image: is required") == 1


def test_all_that_is_wrong_is_said_of_json_and_of_openais_forms_too(apis: Apis) -> None:
    body = {"text_prompts": [{"text": "a", "weight": "b"}, {"text": {}}], "cfg_scale": 40}
    told = message_of(apis.json(f"{STABILITY}/text-to-image", body))
    assert "body.cfg_scale must be in" in told
    assert "text_prompts[1][text]: is no text or number" in told
    for files, said in (
        ({"other": ("a", b"a")}, "image: is required"),
        ({"image[]": ("a", b"")}, "image[]: the file"),
    ):
        told = message_of(apis.edit(files=files, n="11", cfg_scale="40"))
        assert "n: 11 is not in" in told
        assert "cfg_scale: 40 is not in" in told
        assert said in told
        assert told.count("image") == 1
