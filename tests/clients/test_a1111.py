"""A1111's API: the `webuiapi` package, and what plugins send by hand."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from typing import Any

import numpy as np
import pytest
import requests
import webuiapi
from PIL import Image

from tests.clients.conftest import KEY, OTHER_KEY, pixels
from tests.server.server_process import ServerProcess

QUICK: dict[str, Any] = {
    "steps": 10,
    "denoising_strength": 0.05,
    "seed": 7,
    "width": 320,
    "height": 320,
    "sampler_name": "DPM++ 2M",
}
STARTS = [
    *("options", "samplers", "schedulers", "sd-models", "sd-vae", "sd-modules", "embeddings"),
    *("loras", "upscalers", "scripts", "cmd-flags", "memory", "progress", "prompt-styles"),
    *("hypernetworks", "face-restorers", "latent-upscale-modes", "realesrgan-models"),
    *("script-info", "extensions"),
]


def post(server: ServerProcess, name: str, body: Any, key: str = KEY) -> requests.Response:
    # Some clients send no Content-Type.
    return requests.post(
        f"{server.url}/sdapi/v1/{name}", data=json.dumps(body), auth=("user", key), timeout=180
    )


def images_in(response: requests.Response) -> list[bytes]:
    assert response.status_code == 200, response.text
    return [base64.b64decode(text, validate=True) for text in response.json()["images"]]


@pytest.fixture(scope="module")
def api(server: ServerProcess) -> webuiapi.WebUIApi:
    host, port = server.url.removeprefix("http://").split(":")
    return webuiapi.WebUIApi(host=host, port=int(port), username="user", password=KEY)


@pytest.mark.slow("protocols")
def test_webuiapi_makes_images(api: webuiapi.WebUIApi, image: bytes) -> None:
    picture = Image.open(io.BytesIO(image))
    result = api.img2img(images=[picture], prompt="a cat", batch_size=2, **QUICK)
    assert [one.size for one in result.images] == [(320, 320)] * 2
    assert result.info["all_seeds"] == [7, 8]
    drawn = api.txt2img(prompt="a red circle", steps=5, width=256, height=256, seed=3)
    assert drawn.image.size == (256, 256)


def test_webuiapi_reads_its_lists(api: webuiapi.WebUIApi) -> None:
    assert "DPM++ 2M" in {sampler["name"] for sampler in api.get_samplers()}
    assert api.util_get_model_names()
    assert api.get_options()["sd_model_checkpoint"] == api.util_get_current_model()
    assert api.get_progress()["progress"] == 0.0
    api.set_options({"sd_model_checkpoint": api.util_get_current_model()})


@pytest.mark.slow("protocols")
def test_thirty_steps_are_the_contracts_thirty(server: ServerProcess, image: bytes) -> None:
    fields = {"prompt": "a cat", "seed": "7", "steps": "30", "sampler": "K_EULER"}
    plain = requests.post(
        f"{server.url}/api/generate/basic/imageToImage",
        data=fields,
        files={"init_image": ("a.png", image)},
        headers={"Authorization": KEY, "Accept": "image/png"},
        timeout=120,
    )
    body = {
        "init_images": ["data:image/jpeg;base64," + base64.b64encode(image).decode()],
        "prompt": "a cat",
        "seed": "7",
        "steps": "30",
        "sampler_index": "Euler",
        "denoising_strength": 0.62,
        "width": 320,
        "height": 320.0,
        "alwayson_scripts": {"controlnet": {"args": [{"module": "none"}]}},
        "restore_faces": False,
        "enable_hr": True,
        "hr_scale": None,
    }
    response = post(server, "img2img", body)
    (made,) = images_in(response)
    assert np.array_equal(pixels(made), pixels(plain.content))
    ignored = set(response.headers["X-Ignored-Fields"].split(", "))
    assert ignored == {"alwayson_scripts.controlnet", "enable_hr"}
    assert json.loads(response.json()["info"])["sampler_name"] == "Euler"
    assert "init_images" not in response.json()["parameters"]


@pytest.mark.slow("protocols")
@pytest.mark.parametrize("only_masked", [False, True])
def test_a_mask_keeps_what_is_black(
    server: ServerProcess, image: bytes, mask: bytes, only_masked: bool
) -> None:
    light = Image.open(io.BytesIO(mask)).convert("RGB")
    buffer = io.BytesIO()
    light.save(buffer, "PNG")
    body = QUICK | {
        "init_images": [base64.b64encode(image).decode()],
        "mask": base64.b64encode(buffer.getvalue()).decode(),
        "mask_blur": 0,
        "inpaint_full_res": only_masked,
        "denoising_strength": 0.4,
        "prompt": "a red circle",
    }
    (made,) = images_in(post(server, "img2img", body))
    before, after = pixels(image), pixels(made)
    assert np.array_equal(before[:, :160], after[:, :160])
    assert not np.array_equal(before[:, 160:], after[:, 160:])
    (other,) = images_in(post(server, "img2img", body | {"inpainting_mask_invert": 1}))
    assert np.array_equal(before[:, 160:], pixels(other)[:, 160:])


def test_what_clients_ask_at_their_start(server: ServerProcess) -> None:
    for name in STARTS:
        got = requests.get(f"{server.url}/sdapi/v1/{name}/", auth=("", KEY), timeout=30)
        assert got.status_code == 200, name
        got.json()
    for path in ("/queue/status", "/internal/ping", "/config", "/controlnet/model_list"):
        requests.get(server.url + path, timeout=30).json()
    models = requests.get(f"{server.url}/sdapi/v1/options", auth=("", KEY), timeout=30).json()
    assert post(server, "options", models).json() is None


def test_progress_and_interrupt_are_the_keys_own(server: ServerProcess, image: bytes) -> None:
    body = QUICK | {
        "init_images": [base64.b64encode(image).decode()],
        "denoising_strength": 1,
        "steps": 150,
        "width": 512,
        "height": 512,
    }
    answers: list[requests.Response] = []
    running = threading.Thread(target=lambda: answers.append(post(server, "img2img", body)))
    running.start()
    url = f"{server.url}/sdapi/v1/progress"
    seen: dict[str, Any] = {}
    give_up = time.monotonic() + 60
    while not seen.get("current_image") and time.monotonic() < give_up:
        time.sleep(0.1)
        seen = requests.get(url, auth=("", KEY), timeout=30).json()
    assert 0 < seen["progress"] < 1 and seen["state"]["job_count"] == 1
    Image.open(io.BytesIO(base64.b64decode(seen["current_image"]))).load()
    others = requests.get(url, auth=("", OTHER_KEY), timeout=30).json()
    assert (others["progress"], others["state"]["job_count"]) == (0.0, 0)
    requests.post(f"{server.url}/sdapi/v1/interrupt", auth=("", OTHER_KEY), timeout=30)
    assert running.is_alive()
    assert (
        requests.post(f"{server.url}/sdapi/v1/interrupt", auth=("", KEY), timeout=30).json() == {}
    )
    running.join(60)
    assert images_in(answers[0]) == []


def test_png_info_reads_what_we_wrote(server: ServerProcess, image: bytes) -> None:
    body = QUICK | {"init_images": [base64.b64encode(image).decode()], "prompt": "a cat"}
    text = post(server, "img2img", body).json()["images"][0]
    info = post(server, "png-info", {"image": text}).json()["info"]
    assert info.startswith("a cat\nSteps: 10, Sampler: DPM++ 2M")
    assert "Seed: 7" in info
    plain = base64.b64encode(image).decode()
    assert post(server, "png-info", {"image": plain}).json()["info"] == ""


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"sampler_name": "Nonsense"}, 404, "Sampler not found"),
        ({"steps": 151}, 400, "steps: 151 is not in 1..150"),
        ({"init_images": []}, 404, "Init image not found"),
        ({"init_images": ["%%%"]}, 400, "init_images: is not base64"),
        ({"batch_size": 8, "n_iter": 8}, 400, "batch_size, n_iter: 64 images"),
        ({"script_name": "x/y plot"}, 422, "script_name: x/y plot"),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, 400, "other is not loaded"),
    ],
)
def test_errors_have_detail(
    server: ServerProcess, image: bytes, change: dict[str, Any], status: int, said: str
) -> None:
    body = QUICK | {"init_images": [base64.b64encode(image).decode()]} | change
    response = post(server, "img2img", body)
    assert response.status_code == status
    assert response.json()["detail"].startswith(said) or said in response.json()["detail"]
    refused = post(server, "img2img", body, key="wrong")
    assert (refused.status_code, bool(refused.json()["detail"])) == (401, True)
