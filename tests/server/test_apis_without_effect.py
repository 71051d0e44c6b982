"""Fields that have no effect in a request are named in its answer, whatever is in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.server.apis import (
    BASE64,
    GENERATIONS,
    SIDE,
    STABILITY,
    Apis,
    ignored,
    mask_file,
    message_of,
)
from tests.server.conftest import MakeClient

ODD: list[Any] = ["odd", "99999", {"a": 1}]


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("field", ["denoising_strength", "mask_blur", "inpaint_full_res"])
def test_a1111s_without_an_image(apis: Apis, field: str, value: Any) -> None:
    answer = apis.json("/sdapi/v1/txt2img", {"prompt": "a", "width": 64, field: value})
    assert answer.status_code == 200, answer.text
    assert ignored(answer) == {field}


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("field", ["mask_blur", "inpainting_fill", "inpaint_full_res_padding"])
def test_a1111s_without_a_mask(apis: Apis, field: str, value: Any) -> None:
    answer = apis.img2img(**{field: value})
    assert answer.status_code == 200, answer.text
    assert ignored(answer) == {field}
    refused = apis.img2img(mask=BASE64, **{field: value})
    assert refused.status_code == 400
    assert field in message_of(refused)


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "image_strength"),
        ({}, "partial_images"),
        ({"stream": False}, "partial_images"),
        ({}, "output_compression"),
        ({"output_format": "png"}, "output_compression"),
        ({"stream": "true"}, "response_format"),
        ({}, "model"),
        ({}, "quality"),
        ({"cfg_scale": 5}, "guidance_scale"),
    ],
)
def test_openais_in_json(apis: Apis, fields: dict[str, Any], field: str, value: Any) -> None:
    answer = apis.json(GENERATIONS, {"prompt": "a", **fields, field: value})
    assert answer.status_code == 200, answer.text
    assert ignored(answer) == {field}


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"stream": "true", "partial_images": "odd"}, "partial_images"),
     ({"output_format": "jpeg", "output_compression": "odd"}, "output_compression"),
     ({"response_format": "odd"}, "response_format")],
)  # fmt: skip
def test_openais_that_have_an_effect(apis: Apis, fields: dict[str, str], field: str) -> None:
    answer = apis.json(GENERATIONS, {"prompt": "a", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_openais_in_a_form(apis: Apis) -> None:
    fields = {"partial_images": "odd", "model": "m" * 300, "quality": b"\xff"}
    answer = apis.edit(**fields)
    assert answer.status_code == 200, answer.text
    assert ignored(answer) == set(fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "step_schedule_start"),
        ({"init_image_mode": "IMAGE_STRENGTH"}, "step_schedule_start"),
        ({"init_image_mode": "STEP_SCHEDULE"}, "image_strength"),
        ({"mode": "STEP_SCHEDULE"}, "image_strength"),
        ({"init_image_mode": "IMAGE_STRENGTH"}, "mode"),
        ({}, "extras"),
    ],
)
def test_stabilitys(apis: Apis, fields: dict[str, str], field: str) -> None:
    answer = apis.stability(**fields, **{field: "odd"})
    assert answer.status_code == 200, answer.text
    assert ignored(answer) == {field}


def test_stabilitys_mask_beside_the_images_own(apis: Apis) -> None:
    files = {
        "init_image": ("a.png", mask_file(np.zeros((SIDE, SIDE, 4)))),
        "mask_image": ("m.png", b"no image"),
    }
    answer = apis.stability(
        path="/image-to-image/masking", files=files, mask_source="INIT_IMAGE_ALPHA"
    )
    assert answer.status_code == 200, answer.text
    assert ignored(answer) == {"mask_image"}


@pytest.mark.parametrize("weight", ["0.5", "-0.25"])
def test_a_prompt_is_as_long_as_it_was_sent(apis: Apis, weight: str) -> None:
    """The brackets of its weight, the commas between texts and what closes brackets are ours."""

    def sent(*texts: str) -> Any:
        prompts = [{"text": text, "weight": weight} for text in texts]
        if weight.startswith("-"):
            prompts.append({"text": "a"})
        return apis.json(f"{STABILITY}/text-to-image", {"text_prompts": prompts})

    for texts in (("(" + "a" * 1999,), ("a" * 1000, "b" * 1000)):
        assert sent(*texts).status_code == 200
    for texts in (("a" * 2001,), ("a" * 1000, "b" * 1001)):
        over = sent(*texts)
        assert over.status_code == 400
        assert "2001 characters" in message_of(over)
        assert over.json()["name"] == "invalid_prompts"
