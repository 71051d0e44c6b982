"""Stability's v1 API as its documentation, its examples and its clients send it."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from tests.clients.conftest import KEY, pixels
from tests.server.server_process import ServerProcess

ENGINE = "/v1/generation/stable-diffusion-v1-5"
QUICK = {"steps": "10", "image_strength": "0.9", "seed": "7"}
PROMPT = {"text_prompts[0][text]": "a cat", "text_prompts[0][weight]": "1"}


def post(
    server: ServerProcess,
    path: str,
    fields: dict[str, str],
    files: dict[str, Any],
    accept: str = "application/json",
    key: str = KEY,
) -> requests.Response:
    return requests.post(
        server.url + ENGINE + path,
        data=fields,
        files=files,
        headers={"Authorization": f"Bearer {key}", "Accept": accept},
        timeout=120,
    )


def files_in(response: requests.Response) -> list[bytes]:
    assert response.status_code == 200, response.text
    return [base64.b64decode(item["base64"]) for item in response.json()["artifacts"]]


def test_samples_count_their_seeds_up(server: ServerProcess, image: bytes) -> None:
    fields = PROMPT | QUICK | {"samples": "2", "init_image_mode": "IMAGE_STRENGTH"}
    response = post(server, "/image-to-image", fields, {"init_image": ("a.png", image)})
    assert len(files_in(response)) == 2
    told = [(item["seed"], item["finishReason"]) for item in response.json()["artifacts"]]
    assert told == [(7, "SUCCESS"), (8, "SUCCESS")]


def test_it_is_the_contracts_image(server: ServerProcess, image: bytes) -> None:
    fields = PROMPT | {"steps": "10", "seed": "7", "mode": "STEP_SCHEDULE"}
    fields |= {"step_schedule_start": "0.1", "step_schedule_end": "0.9", "nonsense": "1"}
    # As the official examples do: without a file name.
    response = post(server, "/image-to-image", fields, {"init_image": (None, image)}, "image/png")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert (response.headers["Seed"], response.headers["Finish-Reason"]) == ("7", "SUCCESS")
    assert set(response.headers["X-Ignored-Fields"].split(", ")) == {
        "nonsense",
        "step_schedule_end",
    }
    plain = requests.post(
        f"{server.url}/api/generate/basic/imageToImage",
        data={"prompt": "a cat", **QUICK},
        files={"init_image": ("a.png", image)},
        headers={"Authorization": KEY, "Accept": "image/png"},
        timeout=120,
    )
    assert np.array_equal(pixels(response.content), pixels(plain.content))


def test_the_answer_has_the_inputs_size(server: ServerProcess) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (500, 350), "green").save(buffer, "PNG")
    response = post(
        server, "/image-to-image", PROMPT | QUICK, {"init_image": ("a.png", buffer.getvalue())}
    )
    assert pixels(files_in(response)[0]).shape == (350, 500, 3)


@pytest.mark.parametrize(
    ("source", "kept"), [("MASK_IMAGE_WHITE", 0), ("MASK_IMAGE_BLACK", 1), ("INIT_IMAGE_ALPHA", 0)]
)
def test_masking(
    server: ServerProcess, image: bytes, mask: bytes, light_mask: bytes, source: str, kept: int
) -> None:
    fields = PROMPT | {"steps": "10", "seed": "3", "mask_source": source}
    files = {"init_image": ("a.png", image), "mask_image": ("m.png", light_mask)}
    before = pixels(image)
    if source == "INIT_IMAGE_ALPHA":
        alpha = Image.open(io.BytesIO(mask)).getchannel("A")
        buffer = io.BytesIO()
        whole = Image.open(io.BytesIO(image)).convert("RGB")
        whole.putalpha(alpha)
        whole.save(buffer, "PNG")
        files = {"init_image": ("a.png", buffer.getvalue())}
    (file,) = files_in(post(server, "/image-to-image/masking", fields, files))
    after = pixels(file)
    halves = [slice(0, 160), slice(160, 320)]
    assert np.array_equal(before[:, halves[kept]], after[:, halves[kept]])
    assert not np.array_equal(before[:, halves[1 - kept]], after[:, halves[1 - kept]])


def test_text_to_image(server: ServerProcess) -> None:
    body = {
        "text_prompts": [{"text": "a red circle", "weight": 1}, {"text": "blue", "weight": -1.0}],
        "width": 320,
        "height": 320,
        "steps": 10,
        "seed": 4,
        "sampler": None,
        "clip_guidance_preset": "NONE",
    }
    response = requests.post(
        f"{server.url}{ENGINE}/text-to-image",
        json=body,
        headers={"Authorization": KEY},
        timeout=120,
    )
    assert pixels(files_in(response)[0]).shape == (320, 320, 3)


def test_the_account_has_what_clients_read(server: ServerProcess) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    account = requests.get(f"{server.url}/v1/user/account", headers=headers, timeout=30).json()
    assert isinstance(account["id"], str) and isinstance(account["email"], str)
    assert isinstance(account["organizations"], list)
    balance = requests.get(f"{server.url}/v1/user/balance", headers=headers, timeout=30).json()
    assert isinstance(balance["credits"], float)
    engines = requests.get(f"{server.url}/v1/engines/list", headers=headers, timeout=30).json()
    assert {"id", "name", "description", "type"} == set(engines[0])


@pytest.mark.parametrize(
    ("fields", "name", "said"),
    [
        ({"samples": "11"}, "invalid_samples", "body.samples must be in 1..10; 11 is not"),
        ({"steps": "5"}, "bad_request", "body.steps must be in 10..50; 5 is not"),
        ({"sampler": "X"}, "bad_request", "body.sampler must be one of DDIM"),
        ({"text_prompts[0][text]": " "}, "invalid_prompts", "text_prompts[0][text]: is required"),
        ({"text_prompts[0][weight]": "-1"}, "invalid_prompts", "none has a weight above 0"),
        ({"text_prompts[0][weight]": "nan"}, "invalid_prompts", "nan is not"),
    ],
)
def test_bad_fields(
    server: ServerProcess, image: bytes, fields: dict[str, str], name: str, said: str
) -> None:
    files = {"init_image": ("a.png", image)}
    response = post(server, "/image-to-image", PROMPT | QUICK | fields, files)
    told = response.json()
    assert response.status_code == 400
    assert (set(told), told["name"]) == ({"id", "name", "message"}, name)
    assert said in told["message"]


def test_other_failures(server: ServerProcess, image: bytes) -> None:
    files = {"init_image": ("a.png", image)}
    refused = post(server, "/image-to-image", PROMPT, files, key="wrong")
    assert (refused.status_code, refused.json()["name"]) == (401, "unauthorized")
    assert "Incorrect API key" in refused.json()["message"]
    broken = post(server, "/image-to-image", PROMPT, {"init_image": ("a.png", b"no image")})
    assert (broken.status_code, broken.json()["name"]) == (400, "invalid_init_image")
    several = post(server, "/image-to-image", PROMPT | {"samples": "2"}, files, "image/png")
    assert (several.status_code, several.json()["name"]) == (400, "invalid_samples")
    lost = post(server, "/nothing", PROMPT, files)
    assert (lost.status_code, lost.json()["name"]) == (404, "not_found")
