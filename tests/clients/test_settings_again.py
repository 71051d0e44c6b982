"""The settings that a file of each API holds, sent to that API again: they give the same pixels."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import requests

from server.images.infotext import infotext, settings_in
from tests.clients.conftest import KEY, pixels
from tests.server.server_process import ServerProcess

Settings = Mapping[str, str]


def post(server: ServerProcess, path: str, **options: Any) -> Any:
    response = requests.post(
        server.url + path, headers={"Authorization": KEY}, timeout=120, **options
    )
    assert response.status_code == 200, response.text
    return response.json()


def contract(server: ServerProcess, image: bytes, found: Settings) -> bytes:
    sampler = {"DPM++ 2M": "K_DPMPP_2M", "Euler a": "K_EULER_ANCESTRAL"}[found["Sampler"]]
    fields = {"prompt": found["Prompt"], "sampler": sampler, **strengths(found)}
    path, files = "/api/generate/basic/imageToImage", {"init_image": ("a.png", image)}
    return base64.b64decode(post(server, path, data=fields, files=files)["data"]["image"])


def stability(server: ServerProcess, image: bytes, found: Settings) -> bytes:
    sampler = {"DPM++ 2M": "K_DPMPP_2M", "Euler a": "K_EULER_ANCESTRAL"}[found["Sampler"]]
    fields = {"text_prompts[0][text]": found["Prompt"], "sampler": sampler, **strengths(found)}
    path, files = "/v1/generation/any/image-to-image", {"init_image": ("a.png", image)}
    return base64.b64decode(post(server, path, data=fields, files=files)["artifacts"][0]["base64"])


def openai(server: ServerProcess, image: bytes, found: Settings) -> bytes:
    sampler = " ".join((found["Sampler"], found.get("Schedule type", ""))).strip()
    fields = {"prompt": found["Prompt"], "sampler": sampler, **strengths(found)}
    files = {"image": ("a.png", image)}
    made = post(server, "/v1/images/edits", data=fields, files=files)
    return base64.b64decode(made["data"][0]["b64_json"])


def a1111(server: ServerProcess, image: bytes, found: Settings) -> bytes:
    fields = {
        "init_images": [base64.b64encode(image).decode()],
        "prompt": found["Prompt"],
        "sampler_name": found["Sampler"],
        "scheduler": found.get("Schedule type", "Automatic"),
        "steps": found["Steps"],
        "seed": found["Seed"],
        "cfg_scale": found["CFG scale"],
        "width": found["Size-1"],
        "height": found["Size-2"],
        "denoising_strength": found["Denoising strength"],
    }
    return base64.b64decode(post(server, "/sdapi/v1/img2img", json=fields)["images"][0])


def strengths(found: Settings) -> dict[str, Any]:
    return {
        "steps": found["Steps"],
        "seed": found["Seed"],
        "cfg_scale": found["CFG scale"],
        "image_strength": round(1 - float(found["Denoising strength"]), 12),
    }


SENT = {
    "Prompt": "a blue circle",
    "Steps": "10",
    "Seed": "5",
    "CFG scale": "5.1234567",
    "Size-1": "320",
    "Size-2": "320",
    "Sampler": "DPM++ 2M",
    "Denoising strength": "0.7",
}


@pytest.mark.parametrize(
    ("api", "more"),
    [
        (contract, {}),
        (contract, {"Sampler": "Euler a", "Denoising strength": "0.1234567"}),
        (stability, {}),
        (openai, {}),
        (openai, {"Schedule type": "Karras"}),
        (a1111, {}),
        (a1111, {"Schedule type": "Uniform"}),
        (a1111, {"Sampler": "Euler a", "Denoising strength": "0.3"}),
    ],
)
def test_the_settings_read_back_give_the_same_pixels(
    server: ServerProcess, image: bytes, api: Any, more: dict[str, str]
) -> None:
    sent = SENT | more
    first = api(server, image, sent)
    found = settings_in(infotext(first))
    assert sent.items() <= found.items()
    assert np.array_equal(pixels(api(server, image, found)), pixels(first))
