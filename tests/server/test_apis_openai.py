"""OpenAI's API: where in a body an image was, the image's own mask, Azure's paths."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from tests.server.apis import (
    BASE64,
    EDITS,
    PICTURE,
    Apis,
    ignored,
    mask_file,
    message_of,
    right_half,
)
from tests.server.conftest import MakeClient
from tests.server.stub_engine import StubEngine

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


@pytest.mark.parametrize("size", [None, "320x320", "256x256"])
def test_by_dall_e_2_an_image_is_its_own_mask(
    apis: Apis, engine: StubEngine, size: str | None
) -> None:
    files = {"image": ("a.png", transparent_right())}
    answer = apis.edit(files=files, model="dall-e-2", size=size)
    assert answer.status_code == 200, answer.text
    assert ignored(answer) == set()
    asked = engine.last_request
    assert asked.mask is not None
    assert (asked.mask > 128).mean() == pytest.approx(0.5, abs=0.01)
    assert asked.image_strength == 0
    apis.edit(files=files, model="dall-e-2", image_strength="0.5")
    assert engine.last_request.image_strength == 0.5


@pytest.mark.parametrize(
    ("image", "fields", "named"),
    [
        ("transparent", {"model": "gpt-image-1"}, {"model"}),
        ("transparent", {"model": "stub"}, set()),
        ("transparent", {}, set()),
        ("opaque", {"model": "dall-e-2"}, set()),
    ],
)
def test_else_it_is_laid_on_white(
    apis: Apis, engine: StubEngine, image: str, fields: dict[str, str], named: set[str]
) -> None:
    file = transparent_right() if image == "transparent" else PICTURE
    answer = apis.edit(files={"image": ("a.png", file)}, **fields)
    assert ignored(answer) == named
    asked = engine.last_request
    assert (asked.mask, asked.image_strength) == (None, 0.35)
    assert image == "opaque" or asked.image[:, -1].min() == 255


def test_a_mask_goes_before_the_images_own(apis: Apis, engine: StubEngine) -> None:
    opacity = right_half()
    left = mask_file(np.dstack([opacity, opacity, opacity, opacity]))
    files = {"image": ("a.png", transparent_right()), "mask": ("m.png", left)}
    assert ignored(apis.edit(files=files, model="dall-e-2")) == {"model"}
    got = engine.last_request.mask
    assert got is not None
    assert np.array_equal(got, 255 - opacity)


AZURES = [
    "/v1/deployments/any",
    "/v1/deployments/a%2Fhub-id",
    "/openai/v1",
    "/openai/deployments/dall.e-2",
    "/openai/deployments/a%2Fhub-id",
]


@pytest.mark.parametrize("base", AZURES)
def test_azures_paths(make_client: MakeClient, base: str) -> None:
    apis = Apis(make_client(max_upload_mib=2, api_keys="the-key"), {"api-key": "the-key"})
    # Both together are over what a path takes that is no API's.
    body = {"prompt": "a", "image": "A" * 2_700_000, "mask": "A" * 2_700_000}
    large = apis.json(f"{base}/images/edits", body)
    assert (large.status_code, large.json()["error"]["param"]) == (400, "image")
    query = "?api-version=2025-04-01-preview"
    made = apis.json(f"{base}/images/generations{query}", {"prompt": "a", "model": "m"})
    assert made.status_code == 200, made.text
    assert made.json()["data"][0]["b64_json"]
    edited = apis.client.post(
        f"{base}/images/edits{query}",
        data={"prompt": "a"},
        files={"image": ("a.png", PICTURE)},
        headers=apis.headers,
    )
    assert edited.status_code == 200, edited.text
    nobody = apis.client.post(f"{base}/images/edits")
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/openai/images/edits", "/openai/deployments/a/images/edit"])
def test_what_azures_paths_are_not_has_openais_shape(apis: Apis, path: str) -> None:
    answer = apis.json(path, {})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].endswith(f"did you mean {EDITS}?")
