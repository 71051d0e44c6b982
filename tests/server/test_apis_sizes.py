"""Uploads that are larger than an image may be that is answered at its own size."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.server.apis import SIDE, Apis, mask_file, message_of
from tests.server.conftest import PATH, MakeClient
from tests.server.pictures import file_of

SAID = "3000 x 2000 is over 4194304 pixels"
LARGE = Image.new("RGB", (3000, 2000), "red")
MASK = mask_file(np.full((SIDE, SIDE), 255))
ORIENTATION = 0x0112


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


def turned() -> bytes:
    """Return a JPEG that is 2000 x 3000 in the file and 3000 x 2000 upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return file_of(LARGE.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


@pytest.mark.parametrize("file", [file_of(LARGE), file_of(LARGE, "JPEG"), turned()])
def test_no_answer_is_smaller_without_a_word(apis: Apis, file: bytes) -> None:
    text, mask = base64.b64encode(file).decode(), base64.b64encode(MASK).decode()
    files = {"init_image": ("a", file)}
    masked = {**files, "mask_image": ("m.png", MASK)}
    for answer, field in (
        (apis.stability(files=files), "init_image"),
        (
            apis.stability(
                path="/image-to-image/masking", files=masked, mask_source="MASK_IMAGE_WHITE"
            ),
            "init_image",
        ),
        (apis.img2img(init_images=[text], mask=mask), "init_images"),
    ):
        assert answer.status_code == 400
        assert message_of(answer).startswith(f"{field}: {SAID}")


def test_the_largest_keeps_its_size(apis: Apis) -> None:
    file = file_of(Image.new("RGB", (2048, 2048), "red"), "JPEG")
    answer = apis.stability(files={"init_image": ("a", file)})
    made = base64.b64decode(answer.json()["artifacts"][0]["base64"])
    assert Image.open(io.BytesIO(made)).size == (2048, 2048)


def test_where_another_size_is_answered_it_is_taken(apis: Apis) -> None:
    file = file_of(LARGE, "JPEG")
    text, large = base64.b64encode(file).decode(), file_of(Image.new("L", (3000, 2000), "white"))
    mask = base64.b64encode(large).decode()
    contract: dict[str, Any] = {"init_image": ("a", file), "mask": ("m.png", large)}
    for answer in (
        apis.edit(files={"image": ("a", file)}, size="256x256"),
        apis.edit(files={"image": ("a", file)}, model="dall-e-2"),
        apis.img2img(init_images=[text], mask=mask, inpaint_full_res=False),
        apis.img2img(init_images=[text]),
        apis.img2img(mask=mask),
        apis.client.post(PATH, data={"prompt": "a", "steps": "10"}, files=contract),
    ):
        assert answer.status_code == 200, answer.text
