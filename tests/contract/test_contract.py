"""Every row of the contract and of what it leaves open, against a real server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests

from pipelines.request import CONTRACT_SAMPLERS, ClipGuidancePreset
from server.images.decode import prepare_image
from server.img2img.form import STYLE_PRESETS, ResizeMode
from tests.contract.conftest import KEY, LEARNT_WORD, PATH, QUICK, Client, contract_model
from tests.server.failures import assert_failure
from tests.server.pictures import file_of, gradient, max_difference

UNCHANGED = {"image_strength": 1.0}
"""The answer is then the fitted picture itself, at once."""


# Sizes


@pytest.mark.parametrize(
    ("size", "asked", "made"),
    [
        ((600, 400), {}, (576, 384)),
        ((451, 300), {}, (512, 320)),
        ((600, 400), {"width": 512}, (512, 320)),
        ((600, 400), {"height": 512}, (768, 512)),
        ((600, 400), {"width": 320, "height": 1536}, (320, 1536)),
        ((600, 400), {"width": "", "height": " "}, (576, 384)),
        ((1, 1), {}, (320, 320)),
        ((10_000, 1), {}, (1536, 320)),
    ],
)
def test_size(
    client: Client, size: tuple[int, int], asked: dict[str, Any], made: tuple[int, int]
) -> None:
    picture = file_of(gradient(*size))
    assert client.ask(picture, **UNCHANGED, **asked).image.size == made


@pytest.mark.parametrize("mode", ResizeMode)
def test_image_strength_1_gives_the_fitted_picture(
    client: Client, picture: bytes, mode: ResizeMode
) -> None:
    answer = client.ask(picture, **UNCHANGED, width=448, height=448, resize_mode=mode.value)
    assert max_difference(answer.image, prepare_image(picture, 448, 448, mode)) == 0


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_formats(client: Client, file_format: str) -> None:
    picture = file_of(gradient(320, 320), file_format)
    answer = client.ask(picture, **UNCHANGED)
    assert np.abs(np.asarray(answer.image).astype(int) - np.asarray(gradient(320, 320))).mean() < 12


# Seeds


def test_the_same_seed_gives_the_same_bytes(client: Client, small_picture: bytes) -> None:
    first = client.ask(small_picture, **QUICK, seed=11)
    again = client.ask(small_picture, **QUICK, seed=11)
    other = client.ask(small_picture, **QUICK, seed=12)
    assert (first.seed, other.seed) == (11, 12)
    assert first.png == again.png
    assert max_difference(first.image, other.image) > 0


@pytest.mark.parametrize("seed", [{}, {"seed": 0}, {"seed": ""}])
def test_the_seed_that_is_told_gives_the_picture_again(
    client: Client, small_picture: bytes, seed: dict[str, Any]
) -> None:
    first = client.ask(small_picture, **QUICK, **seed)
    assert 1 <= first.seed <= 4294967295
    assert client.ask(small_picture, **QUICK, seed=first.seed).png == first.png
    assert client.ask(small_picture, **QUICK, **seed).seed != first.seed


def test_the_largest_seed(client: Client, small_picture: bytes) -> None:
    assert client.ask(small_picture, **QUICK, seed=4294967295).seed == 4294967295


# Every name of the contract


def test_every_sampler(client: Client, small_picture: bytes) -> None:
    fields = {**QUICK, "image_strength": 0.8, "seed": 1}
    names = [sampler.value for sampler in CONTRACT_SAMPLERS]
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(
            pool.map(lambda name: client.ask(small_picture, **fields, sampler=name), names)
        )
    for name, answer in zip(names, answers, strict=True):
        assert answer.image.size == (320, 320), name
        assert np.asarray(answer.image).std() > 1, name
        assert max_difference(answer.image, gradient(320, 320)) > 0, name


NAMES = [{"style_preset": style} for style in STYLE_PRESETS]
NAMES += [{"clip_guidance_preset": preset.value} for preset in ClipGuidancePreset]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: "-".join(name.values()))
def test_every_name_is_taken(client: Client, small_picture: bytes, name: dict[str, str]) -> None:
    """What they do to a picture is looked at below, and in test_guidance.py."""
    answer = client.ask(small_picture, **UNCHANGED, **name)
    assert max_difference(answer.image, gradient(320, 320)) == 0


def test_a_textual_inversion(client: Client, small_picture: bytes) -> None:
    if contract_model() != "embedded":
        pytest.skip("the learnt word is the embedded model's")
    plain = client.ask(small_picture, **QUICK, seed=1, prompt="a circle")
    learnt = client.ask(small_picture, **QUICK, seed=1, prompt=f"a {LEARNT_WORD} circle")
    unknown = client.ask(small_picture, **QUICK, seed=1, prompt="a <quiet> circle")
    assert len({plain.png, learnt.png, unknown.png}) == 3
    pixels = [np.asarray(answer.image).astype(int) for answer in (plain, learnt)]
    assert np.abs(pixels[0] - pixels[1]).max() > 2


# Numbers and text


@pytest.mark.parametrize(
    "fields",
    [
        {"cfg_scale": 0},
        {"cfg_scale": 1},
        {"cfg_scale": 7.5},
        {"cfg_scale": 35},
        {"steps": "10.0"},
        {"prompt": "黒い髪 🦊"},
        {"prompt": "word " * 400},
        {"negative_prompt": "a red square"},
        {"unknown_field": "ignored"},
    ],
)
def test_values_that_are_taken(
    client: Client, small_picture: bytes, fields: dict[str, Any]
) -> None:
    answer = client.ask(small_picture, **UNCHANGED, **fields)
    assert max_difference(answer.image, gradient(320, 320)) == 0


CHANGES = [
    {"prompt": "a red house"},
    {"prompt": "黒い髪 🦊"},
    {"prompt": "word " * 400},
    {"negative_prompt": "a red square"},
    {"style_preset": "anime"},
    {"cfg_scale": 0},
    {"cfg_scale": 1},
    {"cfg_scale": 35},
    {"image_strength": 0.7},
    {"image_strength": 0},
]


def test_the_picture_depends_on_prompt_style_scale_and_strength(
    client: Client, small_picture: bytes
) -> None:
    base = {**QUICK, "image_strength": 0.8, "seed": 5}
    with ThreadPoolExecutor(len(CHANGES) + 1) as pool:
        first, *others = pool.map(
            lambda change: client.ask(small_picture, **{**base, **change}).image, [{}, *CHANGES]
        )
    for change, other in zip(CHANGES, others, strict=True):
        assert other.size == (320, 320)
        assert max_difference(other, first) > 0, change


# Failures


def test_400_names_everything_that_is_wrong(client: Client) -> None:
    response = client.post(
        picture=b"no picture", steps=5, cfg_scale="nan", sampler="X", seed=-1, width=330
    )
    assert_failure(
        response,
        400,
        "init_image: the file is no picture",
        "prompt: is required",
        "steps: 5 is not in 10..50",
        "cfg_scale: nan is not a number in 0..35",
        "sampler: X is not one of DDIM, DDPM",
        "seed: -1 is not in 0..4294967295",
        "width: 330 is not a multiple of 64 in 320..1536",
    )


def test_400_without_the_picture(client: Client) -> None:
    files = {"other": ("a", b"x")}
    response = requests.post(
        client.server.url + PATH,
        data={"prompt": "a"},
        files=files,
        headers={"Authorization": KEY},
        timeout=60,
    )
    assert_failure(response, 400, "init_image: is required")


@pytest.mark.parametrize("header", ["Authentication", "Authorization"])
@pytest.mark.parametrize("value", [KEY, f"Bearer {KEY}"])
def test_key_headers(client: Client, header: str, value: str) -> None:
    response = requests.post(client.server.url + PATH, headers={header: value}, timeout=60)
    assert_failure(response, 415)


@pytest.mark.parametrize("key", [None, "wrong"])
def test_401(client: Client, small_picture: bytes, key: str | None) -> None:
    assert_failure(client.post(picture=small_picture, key=key, prompt="a"), 401, "API key")


def test_404_and_405(client: Client) -> None:
    assert_failure(client.server.get("/nothing"), 404)
    response = client.server.get(PATH)
    assert_failure(response, 405)
    assert response.headers["allow"] == "POST"


def test_413(client: Client) -> None:
    over = b"\x89PNG" + b"\x00" * (20 * 1024 * 1024)
    assert_failure(client.post(picture=over, prompt="a"), 413, "20 MiB")
    much_over = b"\x00" * (25 * 1024 * 1024)
    assert_failure(client.post(picture=much_over, prompt="a"), 413)


def test_415(client: Client) -> None:
    response = requests.post(
        client.server.url + PATH, json={"prompt": "a"}, headers={"Authorization": KEY}, timeout=60
    )
    assert_failure(response, 415, "multipart/form-data")
    assert_failure(client.post(picture=None, prompt="a"), 415, "multipart/form-data")


def test_malformed_multipart(client: Client) -> None:
    headers = {"Authorization": KEY, "Content-Type": "multipart/form-data; boundary=x"}
    response = requests.post(
        client.server.url + PATH, data=b"--x\r\nnothing", headers=headers, timeout=60
    )
    assert_failure(response, 400, "malformed multipart form")


def test_cors(client: Client) -> None:
    response = requests.options(
        client.server.url + PATH,
        headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"},
        timeout=60,
    )
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://a.example"


def test_no_key_is_in_the_log(client: Client) -> None:
    assert "server.access" in client.server.log
    assert KEY not in client.server.log
