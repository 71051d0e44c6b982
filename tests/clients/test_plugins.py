"""The bodies of clients that cannot run here, as their sources send them, and what they read."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
import requests
from PIL import Image

from tests.clients.conftest import KEY
from tests.clients.test_a1111 import post
from tests.server.server_process import ServerProcess

FEW: dict[str, Any] = {"steps": 10, "denoising_strength": 0.05, "width": 320, "height": 320}


def size_of(text: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True))).size


def answer(server: ServerProcess, name: str, body: dict[str, Any]) -> Any:
    response = post(server, name, body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def bare(image: bytes) -> str:
    return base64.b64encode(image).decode()


def test_ai_render_for_blender(server: ServerProcess, bare: str) -> None:
    body = FEW | {
        "init_images": [f"data:image/png;base64,{bare}"],
        "prompt": "a cat",
        "negative_prompt": "",
        "cfg_scale": 7,
        "seed": 1,
        "sampler_index": "LMS Karras",
        "sampler": "LMS Karras",
        "image_similarity": 0.4,
        "alwayson_scripts": {"controlnet": {"args": []}},
    }
    assert size_of(answer(server, "img2img", body)["images"][0]) == (320, 320)
    wrong = post(server, "img2img", body | {"sampler_index": "Nothing", "sampler": "Nothing"})
    assert wrong.status_code == 404
    assert wrong.json()["detail"].startswith("Sampler not found")


def test_auto_photoshop(server: ServerProcess, bare: str) -> None:
    body = FEW | {
        "init_images": [bare],
        "prompt": "a cat",
        "seed": "-1",
        "sampler_index": "Euler a",
        "width": 328,
        "uniqueDocumentId": "1",
        "selection_info": {"left": 0, "width": 328},
        "batch_size": 1,
        "restore_faces": False,
        "alwayson_scripts": {},
    }
    (made,) = answer(server, "img2img", body)["images"]
    assert size_of(made) == (328, 320)
    # It sends each back with a prefix of its own, and cuts the last line at commas and colons.
    info = answer(server, "png-info", {"image": f"data:image/png;base64,{made}"})["info"]
    read = dict(part.split(": ", 1) for part in info.splitlines()[-1].split(", "))
    assert (read["Steps"], read["Sampler"], read["Size"]) == ("10", "Euler a", "328x320")
    assert int(read["Seed"]) > 0
    interrupted = requests.post(
        f"{server.url}/sdapi/v1/interrupt",
        headers={"Content-Type": "application/json"},
        auth=("user", KEY),
        timeout=30,
    )
    assert interrupted.status_code == 200
    interrupted.json()


def test_cyanic_for_krita(server: ServerProcess, bare: str) -> None:
    mask = Image.new("RGBA", (301, 307), (0, 0, 0, 255))
    mask.paste((255, 255, 255, 255), (100, 100, 200, 200))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    body = FEW | {
        "init_images": [bare],
        "mask": base64.b64encode(buffer.getvalue()).decode(),
        "prompt": "a cat",
        "width": 301,
        "height": 307,
        "seed": 3,
        "subseed": -1,
        "subseed_strength": 0,
        "n_iter": 2,
        "styles": [],
        "inpaint_full_res": False,
        "sampler_name": "DPM++ 2M",
        "override_settings": {"sd_vae": "Automatic", "img2img_color_correction": False},
        "override_settings_restore_afterwards": False,
    }
    made = answer(server, "img2img", body)
    info, parameters = json.loads(made["info"]), made["parameters"]
    assert info["all_seeds"] == [3, 4]
    assert {size_of(one) for one in made["images"]} == {(info["width"], info["height"])}
    assert (info["width"], info["height"]) == (301, 307)
    assert (parameters["batch_size"], parameters["n_iter"]) == (1, 2)
    assert "save_images" in parameters
    state = requests.get(
        f"{server.url}/sdapi/v1/progress", auth=("user", KEY), timeout=30
    ).json()["state"]  # fmt: skip
    assert {"skipped", "interrupted"} <= set(state)


def test_open_outpaint_and_stable_ui(server: ServerProcess, bare: str) -> None:
    body = FEW | {
        "init_images": [f"data:image/png;base64,{bare}"],
        "prompt": "a cat",
        "mask": "",
        "mask_blur": None,
        "inpainting_mask_invert": None,
        "seed": 5,
        "subseed": None,
        "sampler_index": "Euler",
        "genkey": "KCPP1",
        "n": 1,
        "extra_images": [],
        "loras": [],
    }
    made = answer(server, "img2img/", body)
    info = json.loads(made["info"])
    assert size_of(made["images"][0]) == (320, 320)
    assert (info["all_seeds"], info["sampler_name"], info["steps"]) == ([5], "Euler", 10)
    assert {"cfg_scale", "clip_skip", "extra_generation_params"} <= set(info)


def test_ai_render_by_stability(server: ServerProcess, image: bytes) -> None:
    fields = {
        "text_prompts[0][text]": "a cat",
        "text_prompts[0][weight]": "1.0",
        "text_prompts[1][text]": "ugly",
        "text_prompts[1][weight]": "-1.0",
        "image_strength": "0.9",
        "cfg_scale": "7",
        "seed": "5",
        "steps": "10",
        "samples": "1",
        "sampler": "K_LMS",
    }

    def ask(key: str | None, **changed: str) -> requests.Response:
        return requests.post(
            f"{server.url}/v1/generation/stable-diffusion-xl-1024-v1-0/image-to-image",
            data=fields | changed,
            files={"init_image": ("init.png", image)},
            headers={"Accept": "application/json"} | ({"Authorization": key} if key else {}),
            timeout=120,
        )

    made = ask(KEY).json()
    assert size_of(made["artifacts"][0]["base64"]) == (320, 320)
    # It looks for these words in messages.
    assert "missing" in ask(None).json()["message"].lower()
    assert "incorrect" in ask("Bearer wrong").json()["message"].lower()
    for name, value in (("sampler", "K_NOTHING"), ("cfg_scale", "99"), ("steps", "9999")):
        message = ask(KEY, **{name: value}).json()["message"]
        assert f"body.{name} must be" in message or name in message
