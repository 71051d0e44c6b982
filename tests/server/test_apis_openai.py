"""OpenAI's API: where in a body an image was, the image's own mask, Azure's paths."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from tests.server.apis import BASE64, EDITS, Apis, ignored, mask_file, message_of, right_half
from tests.server.conftest import MakeClient

TEXT = base64.b64encode(b"no image").decode()


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image": [BASE64, TEXT]}, {"image[1]"}),
        ({"images": [{"image_url": BASE64}, {"image_url": TEXT}]}, {"images[1].image_url"}),
        ({"image": BASE64, "images": [{"url": TEXT}]}, {"images[0].url"}),
        ({"image": {"image_url": [BASE64, TEXT]}}, {"image.image_url[1]"}),
        ({"image": BASE64, "mask": ["MASK", TEXT, TEXT]}, {"mask[1]", "mask[2]"}),
    ],
)
def test_images_beside_the_first_are_named(
    apis: Apis, fields: dict[str, Any], named: set[str]
) -> None:
    if "mask" in fields:
        fields["mask"][0] = base64.b64encode(transparent_right()).decode()
    answer = apis.json(EDITS, {"prompt": "a", **fields})
    assert answer.status_code == 200, answer.text
    assert {unquote(name) for name in ignored(answer)} == named


@pytest.mark.parametrize("text", [TEXT, "@", "http://host/a.png"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"images": [{"image_url": "TEXT"}]}, "images[0].image_url"),
        ({"image": ["TEXT"]}, "image[0]"),
        ({"image": BASE64, "mask": [{"image_url": {"url": "TEXT"}}]}, "mask[0].image_url.url"),
    ],
)
def test_a_fault_is_named_by_where_it_is(
    apis: Apis, fields: dict[str, Any], param: str, text: str
) -> None:
    body = json.dumps({"prompt": "a", **fields}).replace("TEXT", text)
    answer = apis.json(EDITS, body.encode())
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert message_of(answer).startswith(f"{param}: ")


def transparent_right() -> bytes:
    """Return an image whose right half is transparent."""
    opacity = 255 - right_half()
    return mask_file(np.dstack([opacity, opacity, opacity, opacity]))
