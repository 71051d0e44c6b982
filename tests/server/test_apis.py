"""The other APIs with the stub engine: odd values, fields ignored by name, paths of another API."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from server.api.hints import hint
from tests.server.apis import (
    BASE64,
    EDITS,
    GENERATIONS,
    IMG2IMG,
    PICTURE,
    SIDE,
    STABILITY,
    Apis,
    ignored,
    mask_file,
    message_of,
    right_half,
)
from tests.server.conftest import PATH, MakeClient
from tests.server.forms import CONTENT_TYPE, END, part
from tests.server.pictures import file_of, gradient
from tests.server.stub_engine import StubEngine

URL = f"data:image/png;base64,{BASE64}"
TEXT_TO_IMAGE = f"{STABILITY}/text-to-image"


@pytest.fixture
def apis(make_client: MakeClient) -> Apis:
    return Apis(make_client())


def image_in(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


NOT_JSON: list[tuple[bytes, int, str]] = [
    (b'{"foo": NaN}', 400, "foo: nan is no number of JSON"),
    (b'{"foo": [{"bar": -1e999}]}', 400, "foo: -inf is no number of JSON"),
    (b'{"steps": ' + b"9" * 5000 + b"}", 400, "the body is not JSON"),
    (b'{"steps": ' + b"9" * 400 + b"}", 400, "steps: 9999"),
    (b"[" * 100_000, 400, "the body is not JSON"),
    (b'{"a":' + b"[" * 50 + b"]" * 50 + b"}", 400, "nested deeper than 40"),
    (b'{"foo": "\xff"}', 400, "the body is not UTF-8"),
    (b'{"seed": "\\ud800", "prompt": "a"}', 400, "seed: \\ud800 is not a whole number"),
    (b'{"prompt": "' + b"a" * 20_000 + b'"}', 400, "prompt: is a text of 20000 bytes"),
    (b"[1]", 400, "the body is no JSON object"),
]


@pytest.mark.parametrize("path", [GENERATIONS, TEXT_TO_IMAGE, "/sdapi/v1/txt2img"])
@pytest.mark.parametrize(("body", "status", "said"), NOT_JSON, ids=range(len(NOT_JSON)))
def test_json_that_is_none_or_odd(
    apis: Apis, engine: StubEngine, path: str, body: bytes, status: int, said: str
) -> None:
    if path == TEXT_TO_IMAGE and b"prompt" in body:
        body = body.replace(b'"prompt": ', b'"style_preset": ')
        said = said.replace("prompt:", "style_preset:")
    response = apis.json(path, body)
    assert response.status_code == status
    assert said in message_of(response) or "body." in message_of(response)
    assert engine.handles == []


@pytest.mark.parametrize(
    "fields", [{"size": "\ud83d"}, {"sampler": "\ud83d"}, {"output_format": "\ud83d"}]
)
def test_half_a_surrogate_pair_is_shown_escaped(apis: Apis, fields: dict[str, str]) -> None:
    response = apis.json(EDITS, {"prompt": "a cat", "image": URL, **fields})
    (name,) = fields
    assert response.status_code == 400
    assert message_of(response).startswith(f"{name}: ")
    assert "\\ud83d" in message_of(response)


def test_what_is_no_utf8_in_an_ignored_field_does_no_harm(apis: Apis) -> None:
    body = json.dumps({"init_images": [BASE64], "steps": 10, "width": SIDE, "height": SIDE})
    response = apis.json(IMG2IMG, body.encode()[:-1] + b',"foo":"' + b"\xff" * 20_000 + b'"}')
    assert response.status_code == 200
    assert response.json()["parameters"]["foo"] == "\ufffd" * 20_000
    assert ignored(response) == {"foo"}


@pytest.mark.parametrize(
    ("seed", "told"),
    [(1, 1), ("7", 7), (7.0, 7), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1), (2**32, 1),
     (2**64 - 1, 2**32 - 1)],
)  # fmt: skip
def test_seeds_wrap_on_a1111s_api(apis: Apis, seed: Any, told: int) -> None:
    response = apis.img2img(seed=seed, batch_size=2)
    assert json.loads(response.json()["info"])["all_seeds"] == [told, told % (2**32 - 1) + 1]


@pytest.mark.parametrize("seed", [-1, None, ""])
def test_no_seed_is_a_random_one(apis: Apis, seed: Any) -> None:
    response = apis.img2img(seed=seed)
    assert 1 <= json.loads(response.json()["info"])["seed"] < 2**32
    assert response.json()["parameters"]["seed"] == seed


@pytest.mark.parametrize("seed", [2**64, -2, 1e30, True, "abc", [1]])
def test_no_seeds(apis: Apis, seed: Any) -> None:
    response = apis.img2img(seed=seed)
    assert (response.status_code, message_of(response)[:6]) == (400, "seed: ")


def test_a1111s_fields_without_effect_are_named(apis: Apis) -> None:
    sent = {"seed_resize_from_w": 512, "seed_resize_from_h": -1, "script_args": [1], "eta": 0}
    response = apis.img2img(**sent, override_settings=[1], alwayson_scripts={"ADetailer": {"a": 1}})
    assert ignored(response) == {
        *("seed_resize_from_w", "script_args", "override_settings", "alwayson_scripts.ADetailer")
    }
    body = {"init_images": [BASE64], "mask": BASE64, "denoising_strength": 0.2, "steps": 5}
    assert ignored(apis.json("/sdapi/v1/txt2img", body)) == {
        *("init_images", "mask", "denoising_strength")
    }


def test_openais_fields_without_effect_are_named(apis: Apis) -> None:
    response = apis.edit(
        partial_images="2", output_compression="50", num_inference_steps="20", strength="0.9"
    )
    assert ignored(response) == {
        *("partial_images", "output_compression", "num_inference_steps", "strength")
    }
    body = {"prompt": "a", "image": URL, "image_strength": 0.5, "user": ["no", "text"], "n": None}
    assert ignored(apis.json(GENERATIONS, body)) == {"image", "image_strength", "user"}
    assert ignored(apis.edit(output_format="jpeg", output_compression="50")) == set()


def test_stabilitys_fields_without_effect_are_named(apis: Apis) -> None:
    response = apis.stability(
        mode="IMAGE_STRENGTH", init_image_mode="STEP_SCHEDULE", image_strength="0.5", width="512"
    )
    assert ignored(response) == {"mode", "image_strength", "width"}


def test_the_contracts_fields_without_effect_are_named(send: Any) -> None:
    assert ignored(send(strength="0.9", denoising="0.4")) == {"strength", "denoising"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guidance_scale": "50"}, "guidance_scale"),
        ({"cfg_scale": "50"}, "cfg_scale"),
        ({"num_inference_steps": "0"}, "num_inference_steps"),
        ({"n": "11"}, "n"),
    ],
)
def test_openais_errors_name_what_was_sent(apis: Apis, fields: dict[str, str], param: str) -> None:
    response = apis.edit(**{"steps": None, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert message_of(response).startswith(f"{param}: {fields[param]} is not in ")


def test_stabilitys_errors_name_what_was_sent(apis: Apis) -> None:
    assert "body.mode must be one of" in message_of(apis.stability(mode="x"))
    response = apis.stability(**{"text_prompts[0][text]": "a BREAK " * 20})
    assert response.json()["name"] == "invalid_prompts"
    assert response.json()["message"].startswith("text_prompts: has BREAK 20 times")


def test_masks_of_openais_clients(apis: Apis, engine: StubEngine) -> None:
    light = np.full((SIDE, SIDE), 90, np.uint8)
    transparent_right = mask_file(np.dstack([light, light, light, 255 - right_half()]))
    files = {"image": ("a.png", PICTURE), "mask[]": ("m.png", transparent_right)}
    assert ignored(apis.edit(files=files)) == set()
    assert np.array_equal(engine.last_request.mask, right_half())
    twice = {**files, "mask": ("m.png", transparent_right)}
    assert ignored(apis.edit(files=twice)) == {"mask%5B%5D"}
    masks: list[tuple[Any, str]] = [({"file_id": "f"}, "mask"), ([{"b64": "x"}], "mask[0]")]
    for mask, param in masks:
        response = apis.json(EDITS, {"prompt": "a", "image": URL, "mask": mask})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert "has no image_url" in message_of(response)


TEXTS = {
    "prompt": b"a cat",
    "text_prompts[0][text]": b"a cat",
    "mask_source": b"MASK_IMAGE_WHITE",
    "steps": b"10",
}
MASKING = f"{STABILITY}/image-to-image/masking"


def form(path: str, field: str, disposition: str, data: bytes, *headers: str) -> bytes:
    """A form of any API whose files are all good but the one."""
    texts = [part(f'name="{name}"', text) for name, text in TEXTS.items()]
    files = {EDITS: "image", MASKING: "init_image"}
    good = files.get(path, field)
    if field not in (good, f"{good}[]"):
        texts.append(part(f'name="{good}"; filename="a.png"', PICTURE))
    elif path == MASKING:
        texts.append(part('name="mask_image"; filename="m.png"', mask_file(right_half())))
    return b"".join(texts) + part(f'name="{field}"{disposition}', data, *headers) + END


@pytest.mark.parametrize(
    ("path", "field"),
    [
        *((EDITS, name) for name in ("image", "image[]", "mask", "mask[]")),
        (f"{STABILITY}/image-to-image", "init_image"),
        *((MASKING, name) for name in ("init_image", "mask_image")),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(
    apis: Apis, engine: StubEngine, path: str, field: str
) -> None:
    for disposition, data, encoding, said in (
        ('; filename="m.png"', b"", "binary", "the file is empty"),
        ('; filename="m.png"', b"!!!!", "base64", "is not valid base64"),
        ("", b"!!!!", "base64", "is not valid base64"),
        ('; filename=""', b"x", "x-uuencode", "Content-Transfer-Encoding x-uuencode is not"),
    ):
        sent = form(path, field, disposition, data, f"Content-Transfer-Encoding: {encoding}")
        response = apis.client.post(path, content=sent, headers={"Content-Type": CONTENT_TYPE})
        assert response.status_code == 400
        assert message_of(response).startswith(f"{field}: {said}")
    assert engine.handles == []


@pytest.mark.parametrize("disposition", ["", '; filename=""'])
def test_an_empty_file_field_counts_as_left_out(
    apis: Apis, engine: StubEngine, disposition: str
) -> None:
    headers = {"Content-Type": CONTENT_TYPE}
    sent = form(EDITS, "mask", disposition, b"")
    assert apis.client.post(EDITS, content=sent, headers=headers).status_code == 200
    assert engine.last_request.mask is None
    sent = form(EDITS, "image", disposition, b"")
    assert message_of(apis.client.post(EDITS, content=sent, headers=headers)) == (
        "image: is required"
    )


@pytest.mark.parametrize(
    ("mask", "param", "said"),
    [
        ({"image_url": ""}, "mask", "image_url is empty; send"),
        ({"image_url": {"url": ""}}, "mask.image_url", "url is empty; send"),
        ({"image_url": []}, "mask", "image_url is empty; send"),
        ([{"image_url": [None]}], "mask[0]", "image_url is empty; send"),
        ({"file_id": "f"}, "mask", "{file_id} has no image_url; send"),
        ("not base64", "mask", ""),
        (" ", "mask", ""),
    ],
)
def test_a_mask_in_json_that_is_none_is_refused_by_name(
    apis: Apis, mask: Any, param: str, said: str
) -> None:
    response = apis.json(EDITS, {"prompt": "a", "image": URL, "mask": mask})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert message_of(response).startswith(f"{param}: {said}")


def test_of_two_addresses_the_one_that_is_there_counts(apis: Apis) -> None:
    image = {"image_url": None, "url": URL}
    assert apis.json(EDITS, {"prompt": "a", "image": image}).status_code == 200


def test_images_that_together_are_too_large(apis: Apis, engine: StubEngine) -> None:
    response = apis.json(GENERATIONS, {"prompt": "a", "n": 10, "size": "4096x4096"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
    said = "n, size: 10 images of 4096 x 4096 are over the 37748736 pixels that they may have"
    assert message_of(response) == f"{said} together; 2 of that size are taken"
    assert engine.handles == []


def test_every_api_has_the_bound_on_all_pixels_of_an_answer(
    apis: Apis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.img2img.service.MAX_ANSWER_PIXELS", 3 * SIDE**2)
    large = file_of(gradient(2 * SIDE, 2 * SIDE))
    text = base64.b64encode(large).decode()
    only_masked = {"init_images": [text], "mask": text, "inpaint_full_res": True}
    files = {"init_image": ("a.png", large)}
    for taken, over, said in (
        (apis.edit(n="3"), apis.edit(n="4"), "n, size: 4 images of 320 x 320"),
        (apis.stability(samples="3"), apis.stability(samples="4"), "samples: 4 images of 320"),
        (
            apis.stability(files=files),
            apis.stability(files=files, samples="2"),
            "samples: 2 images of 640 x 640",
        ),
        (
            apis.img2img(batch_size=3),
            apis.img2img(batch_size=2, n_iter=2),
            "batch_size, n_iter: 4 images of 320 x 320",
        ),
        (
            apis.img2img(**only_masked),
            apis.img2img(**only_masked, n_iter=2),
            "batch_size, n_iter: 2 images of 640 x 640",
        ),
    ):
        assert taken.status_code == 200
        assert over.status_code == 400
        assert message_of(over).startswith(said)


@pytest.mark.parametrize(
    ("values", "blur", "said"),
    [
        (np.zeros((9, 9)), 0, "mask: selects no pixel"),
        (np.zeros((9, 9, 4)), 0, "mask: selects no pixel"),
        ("one pixel", 32, "selects so little that nothing is left of it, made 320 x 320 and blur"),
    ],
    ids=["black", "transparent", "blurred away"],
)
@pytest.mark.parametrize("only_masked", [True, False])
def test_masks_that_select_nothing(
    apis: Apis, values: Any, blur: int, said: str, only_masked: bool
) -> None:
    if isinstance(values, str):
        values = np.zeros((SIDE, SIDE))
        values[160, 160] = 255
    mask = base64.b64encode(mask_file(values)).decode()
    response = apis.img2img(mask=mask, mask_blur=blur, inpaint_full_res=only_masked)
    assert response.status_code == 400
    assert said in message_of(response)


@pytest.mark.parametrize("corner", [(0, 0), (0, SIDE - 1), (SIDE - 1, SIDE - 1), (160, 0)])
def test_only_masked_at_the_border(apis: Apis, engine: StubEngine, corner: tuple[int, int]) -> None:
    values = np.zeros((SIDE, SIDE))
    values[corner] = 255
    mask = base64.b64encode(mask_file(values)).decode()
    response = apis.img2img(mask=mask, mask_blur=0, inpaint_full_res_padding=0, width=512)
    assert response.status_code == 200
    assert (engine.last_request.width, engine.last_request.height) == (512, SIDE)
    assert image_in(response.json()["images"][0]).size == (SIDE, SIDE)


@pytest.mark.parametrize("side", [64, 300, 333])
def test_outside_a_mask_the_pixels_are_kept_at_sizes_that_are_not_made(
    apis: Apis, engine: StubEngine, side: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    picture = mask_file(noise)
    half = side // 2
    alpha = np.full((side, side, 1), 255, np.uint8)
    alpha[:, half:] = 0
    files = {
        "image": ("a.png", picture),
        "mask": ("m.png", mask_file(np.concatenate([noise, alpha], 2))),
    }
    openai = apis.edit(files=files, size=f"{side}x{side}").json()["data"][0]["b64_json"]
    light = base64.b64encode(mask_file(255 - alpha[..., 0])).decode()
    a1111 = apis.img2img(
        init_images=[base64.b64encode(picture).decode()],
        mask=light,
        mask_blur=0,
        inpaint_full_res=False,
        width=side,
        height=side,
    ).json()["images"][0]
    stability = apis.stability(
        path="/image-to-image/masking",
        files={"init_image": ("a.png", picture), "mask_image": ("m.png", base64.b64decode(light))},
        mask_source="MASK_IMAGE_WHITE",
    ).json()["artifacts"][0]["base64"]
    for text in (openai, a1111, stability):
        made = np.asarray(image_in(text))
        assert made.shape == (side, side, 3)
        assert np.array_equal(made[:, :half], noise[:, :half])
        # The stub gives back what it got, which was resized to be made.
        assert not np.array_equal(made[:, half:], noise[:, half:])


def test_another_aspect_ratio_is_cut_to_not_squeezed(apis: Apis, engine: StubEngine) -> None:
    """A circle stays one: 640 x 100 is made at 640 x 320 of what is 640 x 100 in the image."""
    y, x = np.mgrid[:640, :640]
    circle = np.where((x - 320) ** 2 + (y - 320) ** 2 < 40**2, 255, 0).astype(np.uint8)
    files = {"image": ("a.png", mask_file(np.dstack([circle] * 3)))}
    text = apis.edit(files=files, size="640x100").json()["data"][0]["b64_json"]
    made = np.asarray(image_in(text).convert("L")) > 127
    assert made.shape == (100, 640)
    assert abs(int(made[50].sum()) - 80) <= 2
    assert abs(int(made[:, 320].sum()) - 80) <= 2


@pytest.mark.parametrize("count", [1, 10])
def test_image_png_holds_one_image(apis: Apis, count: int) -> None:
    response = apis.stability(samples=str(count), seed="5", headers={"Accept": "image/png"})
    if count == 1:
        assert response.headers["content-type"] == "image/png"
        assert (response.headers["seed"], response.headers["finish-reason"]) == ("5", "SUCCESS")
    else:
        assert (response.status_code, response.json()["name"]) == (400, "invalid_samples")
        told = apis.stability(samples="10", seed="4294967295").json()["artifacts"]
        assert [item["seed"] for item in told] == [2**32 - 1, *range(1, 10)]


def test_a_browser_may_read_what_is_told_in_headers(make_client: MakeClient) -> None:
    apis = Apis(make_client(cors_origins="https://a.example"))
    response = apis.stability(headers={"Accept": "image/png", "Origin": "https://a.example"})
    exposed = set(response.headers["access-control-expose-headers"].split(", "))
    assert {"Seed", "Finish-Reason", "X-Filtered", "X-Model", "X-Ignored-Fields"} <= exposed


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/images/edits", EDITS),
        ("/v1/images/edit", EDITS),
        ("/v1/v1/images/edits", EDITS),
        ("/api/v1/images/generations", GENERATIONS),
        ("/img2img", IMG2IMG),
        ("/v1/sdapi/v1/img2img", IMG2IMG),
        ("/api/v1/sdapi/v1/progress", "/sdapi/v1/progress"),
        ("/imageToImage", PATH),
        ("/generation/x/image-to-image", "/v1/generation/{engine}/image-to-image"),
        ("/api/models", "/v1/models"),
        ("/nothing", ""),
        ("/v1/chat/completions", ""),
    ],
)
def test_a_path_that_is_not_is_told_which_is_meant(apis: Apis, path: str, wanted: str) -> None:
    response = apis.client.post(path, json={})
    assert response.status_code == 404
    told = message_of(response)
    assert told.startswith(f"nothing is at {path}")
    assert told.endswith(f"; did you mean {wanted}?" if wanted else path)


@pytest.mark.parametrize("sent", ["", "/prefix"])
@pytest.mark.parametrize(
    ("path", "wanted"), [("/img2img", IMG2IMG), ("/v1/sdapi/v1/progress", "/sdapi/v1/progress")]
)
def test_the_path_that_is_meant_is_that_of_the_client(
    make_client: MakeClient, sent: str, path: str, wanted: str
) -> None:
    """Whether a proxy strips the prefix or not."""
    told = Apis(make_client(root_path="/prefix")).client.post(sent + path, json={})
    assert message_of(told) == f"nothing is at /prefix{path}; did you mean /prefix{wanted}?"


def test_a_body_of_another_api_is_told_where_it_goes(make_client: MakeClient) -> None:
    apis = Apis(make_client(root_path="/prefix"))
    for path in (PATH, f"{STABILITY}/image-to-image", "/prefix" + PATH):
        told = apis.client.post(path, json={"init_images": [BASE64]})
        assert told.status_code == 415
        assert message_of(told).endswith(
            f"JSON goes to /prefix{IMG2IMG} (init_images) or /prefix{EDITS} (image)"
        )
    for path in (IMG2IMG, GENERATIONS, TEXT_TO_IMAGE, "/prefix" + IMG2IMG):
        told = apis.client.post(path, files={"init_image": ("a.png", PICTURE)})
        assert told.status_code == 415
        assert message_of(told).endswith(
            f"multipart forms go to /prefix{PATH}, /prefix{EDITS} or "
            "/prefix/v1/generation/{engine}/image-to-image"
        )
    for path in (PATH, EDITS, f"{STABILITY}/image-to-image"):
        headers = {"Content-Type": "multipart/mixed; boundary=x"}
        told = apis.client.post(path, content=b"", headers=headers)
        said = "Content-Type is multipart/mixed; send the fields as multipart/form-data"
        assert (told.status_code, message_of(told)) == (415, said)


def test_a_hint_is_for_failures_of_routing_alone() -> None:
    assert hint(404, "/v1/images/edits", "nothing is at /v1/images/edits") == ""
    assert hint(404, "/sdapi/v1/img2img", "Sampler not found: x") == ""
    assert hint(400, "/img2img", "nothing is at /img2img") == ""


@pytest.mark.parametrize("path", ["/", "/config", "/queue/status", "/internal/ping"])
def test_signs_of_life_answer_head(apis: Apis, path: str) -> None:
    assert apis.client.head(path).status_code == 200


def test_failures_keep_their_status_beside_errors_as_200(make_client: MakeClient) -> None:
    apis = Apis(make_client(errors_as_200=True))
    assert apis.edit(n="0").status_code == 400
    assert apis.stability(steps="0").status_code == 400
    assert apis.img2img(steps=0).status_code == 400
    told = apis.client.post(PATH, data={"prompt": "a"})
    assert (told.status_code, told.json()["code"]) == (200, -1)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/sdapi/v1/samplers", "GET, HEAD"),
        ("POST", "/sdapi/v1/loras", "GET, HEAD"),
        ("GET", "/sdapi/v1/img2img", "POST"),
        ("GET", "/sdapi/v1/refresh-loras", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("GET", "/v1/images/edits", "POST"),
        ("POST", "/v1/engines/list", "GET, HEAD"),
        ("PUT", "/api/runs/0123456789abcdef", "GET, HEAD, DELETE"),
        ("POST", "/static/client.js", "GET, HEAD"),
        ("POST", "/static/page/index.html", "GET, HEAD"),
    ],
)
def test_another_method_is_told_the_right_one(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["Allow"]) == (405, allowed)
    assert f"{method} is not allowed at {path}; allowed: {allowed}" in response.text
