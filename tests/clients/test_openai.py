"""The `openai` package, sync, async and streaming, and what other clients of its API send."""

from __future__ import annotations

import asyncio
import base64
import io
from urllib.parse import quote

import numpy as np
import openai
import pytest
import requests
from PIL import Image

from tests.clients.conftest import KEY, pixels
from tests.server.server_process import ServerProcess

QUICK = {"steps": 10, "image_strength": 0.9, "seed": 7}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def file_in(response: object) -> bytes:
    data = response.data[0].b64_json  # type: ignore[attr-defined]
    return base64.b64decode(data, validate=True)


def test_an_edit_is_the_contracts_image(
    client: openai.OpenAI, server: ServerProcess, image: bytes
) -> None:
    response = client.images.edit(
        model="gpt-image-1", image=("a.png", image), prompt="a cat", extra_body=QUICK
    )
    plain = requests.post(
        f"{server.url}/api/generate/basic/imageToImage",
        data={"prompt": "a cat", **QUICK},
        files={"init_image": ("a.png", image)},
        headers={"Authorization": KEY},
        timeout=120,
    ).json()
    assert np.array_equal(
        pixels(file_in(response)), pixels(base64.b64decode(plain["data"]["image"]))
    )
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_several_images_count_their_seeds_up(client: openai.OpenAI, image: bytes) -> None:
    response = client.images.edit(
        image=[("a.png", image), ("b.png", image)],
        prompt="a cat",
        n=2,
        size="256x256",
        output_format="webp",
        extra_body=QUICK,
    )
    assert response.data is not None
    files = [base64.b64decode(item.b64_json or "") for item in response.data]
    assert [Image.open(io.BytesIO(file)).format for file in files] == ["WEBP", "WEBP"]
    assert [Image.open(io.BytesIO(file)).size for file in files] == [(256, 256)] * 2
    assert files[0] != files[1]


@pytest.mark.slow("protocols")
def test_a_mask_keeps_what_is_opaque(client: openai.OpenAI, image: bytes, mask: bytes) -> None:
    response = client.images.edit(
        image=("a.png", image),
        mask=("m.png", mask),
        prompt="a red circle",
        extra_body={"steps": 10, "seed": 3},
    )
    before, after = pixels(image), pixels(file_in(response))
    assert np.array_equal(before[:, :160], after[:, :160])
    assert not np.array_equal(before[:, 160:], after[:, 160:])


@pytest.mark.slow("protocols")
def test_a_stream_has_partial_images_and_the_image(client: openai.OpenAI, image: bytes) -> None:
    stream = client.images.edit(
        image=("a.png", image),
        prompt="a cat",
        stream=True,
        partial_images=2,
        extra_body={"steps": 10, "image_strength": 0.2, "seed": 7},
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_edit.completed"
    assert set(kinds[:-1]) <= {"image_edit.partial_image"}
    assert 1 <= len(kinds[:-1]) <= 2
    for event in events:
        assert pixels(base64.b64decode(event.b64_json)).shape == (320, 320, 3)


@pytest.mark.slow("protocols")
def test_generations_start_from_noise(client: openai.OpenAI) -> None:
    response = client.images.generate(
        prompt="a red circle on a grass background",
        size="320x320",
        response_format="b64_json",
        extra_body={"steps": 10, "seed": 5},
    )
    assert pixels(file_in(response)).shape == (320, 320, 3)


def test_an_address_is_fetched_without_the_key(client: openai.OpenAI, image: bytes) -> None:
    response = client.images.edit(
        image=("a.png", image), prompt="a cat", response_format="url", extra_body=QUICK
    )
    assert response.data is not None
    url = response.data[0].url
    assert url is not None
    got = requests.get(url, timeout=30)
    assert (got.status_code, got.headers["content-type"]) == (200, "image/png")
    assert pixels(got.content).shape == (320, 320, 3)
    assert requests.get(url[:-1] + "x", timeout=30).status_code == 404


def test_the_asynchronous_client(server: ServerProcess, image: bytes) -> None:
    async def edit() -> bytes:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            response = await client.images.edit(
                image=("a.png", image), prompt="a cat", extra_body=QUICK
            )
            return file_in(response)

    assert pixels(asyncio.run(edit())).shape == (320, 320, 3)


@pytest.mark.parametrize("at", ["azure_endpoint", "base_url"])
def test_azures_client(server: ServerProcess, image: bytes, at: str) -> None:
    place = {at: server.url + ("" if at == "azure_endpoint" else "/v1")}
    client = openai.AzureOpenAI(  # type: ignore[call-overload]
        api_version="2025-04-01-preview", api_key=KEY, max_retries=0, **place
    )
    edited = client.images.edit(
        model="gpt-image-1", image=("a.png", image), prompt="a cat", extra_body=QUICK
    )
    assert pixels(file_in(edited)).shape == (320, 320, 3)
    made = client.images.generate(
        model="gpt-image-1", prompt="a cat", size="320x320", extra_body={"steps": 1}
    )
    assert pixels(file_in(made)).shape == (320, 320, 3)
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="gpt-image-1", prompt="a cat", n=11)
    assert refused.value.param == "n"


def test_models_names_the_one(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


def test_errors_have_openais_shape(
    client: openai.OpenAI, server: ServerProcess, image: bytes
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(image=("a.png", image), prompt="a cat", n=11)
    assert refused.value.param == "n"
    assert "11 is not in 1..10" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(image=("a.png", b"no image"), prompt="a cat")
    assert refused.value.param == "image"
    wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as unknown:
        wrong.models.list()
    assert unknown.value.code == "invalid_api_key"
    lost = requests.get(f"{server.url}/v1/nothing", timeout=30)
    assert lost.status_code == 404
    assert lost.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("form", ["image", "images"])
def test_json_with_data_urls(server: ServerProcess, image: bytes, form: str) -> None:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    pictures = {"image": {"url": url}, "images": [{"image_url": url}, {"image_url": {"url": url}}]}
    response = requests.post(
        f"{server.url}/v1/images/edits?api-version=2025-04-01",
        json={"prompt": "a cat", form: pictures[form], "nonsense": 1, "user": "u", **QUICK},
        headers={"api-key": KEY},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    ignored = response.headers["X-Ignored-Fields"].split(", ")
    assert {"nonsense", "user"} <= set(ignored)
    assert (quote("images[1].image_url.url", safe="") in ignored) == (form == "images")
    assert response.headers["X-Model"]
