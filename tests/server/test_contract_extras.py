"""The contract's extras: a mask, images as bytes by Accept, the model's name."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.server.apis import PICTURE, SIDE, mask_file, right_half
from tests.server.conftest import PATH
from tests.server.failures import assert_failure
from tests.server.forms import CONTENT_TYPE, END, part
from tests.server.stub_engine import StubEngine

ORIENTATION = 0x0112


def turned(values: Any) -> bytes:
    """Return a JPEG that is shown turned by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return mask_file(values, "JPEG", exif=exif, quality=95)


def post(client: TestClient, mask: Any = None, accept: str = "*/*", **fields: str) -> Any:
    files: dict[str, Any] = {"init_image": ("a.png", PICTURE)}
    if mask is not None:
        files["mask"] = ("m.png", mask) if isinstance(mask, bytes) else mask
    data = {"prompt": "a cat", "width": "320", "height": "320", **fields}
    return client.post(PATH, data=data, files=files, headers={"Accept": accept})


@pytest.mark.parametrize(
    "mask",
    [
        mask_file(right_half()),
        mask_file(np.dstack([right_half()] * 3)),
        turned(np.rot90(right_half())),
    ],
    ids=["grey", "colour", "turned"],
)
def test_the_mask_is_what_is_white(client: TestClient, engine: StubEngine, mask: bytes) -> None:
    assert post(client, mask).status_code == 200
    got = engine.last_request.mask
    assert got is not None
    assert got.shape == (SIDE, SIDE)
    assert np.abs(got.astype(int) - right_half()).mean() < 2


@pytest.mark.parametrize(("width", "height"), [(2, 1), (640, 640), (100, 37)])
def test_a_mask_of_another_size_is_resized(
    client: TestClient, engine: StubEngine, width: int, height: int
) -> None:
    values = np.zeros((height, width))
    values[:, width // 2 :] = 255
    assert post(client, mask_file(values)).status_code == 200
    got = engine.last_request.mask
    assert got is not None
    assert got.shape == (SIDE, SIDE)
    assert got[:, :60].max() < 64 < 192 < got[:, -60:].min()


def test_a_mask_is_fitted_as_its_image_is(client: TestClient, engine: StubEngine) -> None:
    """The image is cut to its middle rows, and so is the mask."""
    values = np.zeros((SIDE, SIDE))
    values[SIDE // 2 :] = 255
    assert post(client, mask_file(values), width="640").status_code == 200
    got = engine.last_request.mask
    assert got is not None
    assert got.shape == (320, 640)
    assert got[:150].max() == 0
    assert got[170:].min() == 255
    values[:] = 0
    values[0] = 255
    assert_failure(post(client, mask_file(values), width="640"), 400, "mask: all that it selects")


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (mask_file(np.zeros((9, 9))), "mask: selects no pixel; white is what is made anew"),
        (b"no image", "mask: the file is no picture in a known format"),
        (PICTURE[:-100], "mask: the picture is truncated or corrupt"),
        ((None, b"text"), "mask: came as text; send it as a file"),
    ],
    ids=["black", "no image", "truncated", "text"],
)
def test_masks_that_are_none(client: TestClient, engine: StubEngine, mask: Any, said: str) -> None:
    assert_failure(post(client, mask), 400, said)
    assert engine.handles == []


@pytest.mark.parametrize("absent", [("", b""), ("m.png", b""), (None, b"")])
def test_an_empty_mask_field_counts_as_left_out(
    client: TestClient, engine: StubEngine, absent: Any
) -> None:
    response = post(client, absent)
    if absent[0] == "m.png":
        assert_failure(response, 400, "mask: the file is empty")
    else:
        assert response.status_code == 200
        assert engine.last_request.mask is None


@pytest.mark.parametrize("disposition", ["", '; filename=""', '; filename="m.png"'])
def test_a_mask_that_cannot_be_decoded_is_not_left_out(
    client: TestClient, engine: StubEngine, disposition: str
) -> None:
    body = (
        part('name="prompt"', b"a cat")
        + part('name="init_image"; filename="a.png"', PICTURE)
        + part(f'name="mask"{disposition}', b"!!!!", "Content-Transfer-Encoding: base64")
        + END
    )
    response = client.post(PATH, content=body, headers={"Content-Type": CONTENT_TYPE})
    assert_failure(response, 400, "mask: is not valid base64, its Content-Transfer-Encoding")
    assert engine.handles == []


@pytest.mark.parametrize("steps", ["10", "5"])
def test_image_and_mask_are_both_reported(client: TestClient, steps: str) -> None:
    files = {"init_image": ("a.png", b"no image"), "mask": ("m.png", b"none either")}
    response = client.post(PATH, data={"prompt": "a", "steps": steps}, files=files)
    said = ["init_image: the file is no picture", "mask: the file is no picture"]
    assert_failure(response, 400, *said, *(["steps: 5 is not in"] if steps == "5" else []))


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("IMAGE/WEBP", "image/webp"),
        ("image/png;q=0.9, image/webp", "image/webp"),
        ("image/gif, image/jpeg", "image/jpeg"),
        ("image/png;q=x", "image/png"),
        ("image/png;q=0", ""),
        ("image/gif;q=1, image/png;q=0.5", ""),
        ("image/gif", ""),
        ("image/*", ""),
        ("image/png, application/json;q=0.1", ""),
        ("image/png, */*;q=0.1", ""),
        ("text/html,application/xhtml+xml,image/avif,image/webp,*/*;q=0.8", ""),
        ("image/png, */*;q=0", "image/png"),
        ("", ""),
    ],
)
def test_bytes_are_sent_where_they_are_preferred(
    client: TestClient, accept: str, media_type: str
) -> None:
    response = post(client, accept=accept, seed="7")
    assert response.headers["x-model"] == "stub"
    if media_type:
        assert response.headers["content-type"] == media_type
        assert response.headers["seed"] == "7"
        image = Image.open(io.BytesIO(response.content))
        assert (image.get_format_mimetype(), image.size) == (media_type, (SIDE, SIDE))
    else:
        data = response.json()["data"]
        assert base64.b64decode(data["image"]).startswith(b"\x89PNG")
        assert data["seed"] == 7


def test_a_failure_is_an_envelope_whatever_is_accepted(client: TestClient) -> None:
    assert_failure(post(client, accept="image/png", steps="5"), 400, "steps: 5 is not in 10..50")
