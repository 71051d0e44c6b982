"""Requests of every kind that clients send, over every protocol, and whether an answer is right."""

from __future__ import annotations

import base64
import io
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests
from PIL import Image, ImageDraw

from tests.server.pictures import file_of, gradient

BASIC = "/api/generate/basic/imageToImage"
SIZES = ((320, 320), (384, 320), (320, 448))
"""Few: on a CPU oneDNN keeps what it prepared for each size and number of rows, some 8 MiB each."""
CONTRACT_SAMPLERS = ("K_EULER", "K_DPMPP_2M", "DDIM", "K_HEUN", "K_EULER_ANCESTRAL", "DDPM")
A1111_SAMPLERS = ("Euler", "DPM++ 2M", "Euler a", "DDIM")
PROMPTS = ("a blue circle", "a red square on grass", "two green triangles, at night")
LEAVES_AFTER = (0.01, 0.5)
"""Seconds after which a client that leaves does so, at least and at most."""

Session = requests.Session
Chance = random.Random
Asking = Callable[[Session, str, Chance, float], str]


@dataclass(frozen=True)
class Kind:
    """A kind of request. `ask` sends one by (session, url, chance, patience); it returns what is
    wrong with the answer, blank if nothing."""

    name: str
    weight: int
    ask: Asking


def _uploads() -> list[bytes]:
    images = [gradient(600, 400), gradient(320, 320), gradient(800, 1200)]
    kinds = ("PNG", "JPEG", "WEBP")
    return [file_of(image, kind) for image in images for kind in kinds]


def _mask() -> bytes:
    mask = Image.new("L", (320, 320))
    ImageDraw.Draw(mask).ellipse((80, 80, 240, 240), fill=255)
    return file_of(mask)


UPLOADS = _uploads()
MASK = _mask()


def wrong_image(file: bytes, size: tuple[int, int] | None = None) -> str:
    """Return what is wrong with an image's file, blank if nothing."""
    image = Image.open(io.BytesIO(file))
    image.load()
    if size is not None and image.size != size:
        return f"an image of {image.size} instead of {size}"
    return ""


def _fields(chance: Chance) -> dict[str, Any]:
    width, height = chance.choice(SIZES)
    return {
        "prompt": f"{chance.choice(PROMPTS)}, {chance.randrange(200)}",
        "width": width,
        "height": height,
        "steps": chance.randint(10, 30),
        "sampler": chance.choice(CONTRACT_SAMPLERS),
        "image_strength": round(chance.uniform(0.2, 0.9), 2),
        "cfg_scale": chance.choice((0, 1, 5.5, 7)),
        "seed": chance.randint(1, 2**32 - 1),
    }


def _size(fields: dict[str, Any]) -> tuple[int, int]:
    return fields["width"], fields["height"]


def _refused(response: requests.Response, status: int) -> str:
    ok = response.status_code == status and response.content
    return "" if ok else f"status {response.status_code}: {response.text[:200]}"


def _contract(session: Session, url: str, chance: Chance, patience: float) -> str:
    fields, files = _fields(chance), {"init_image": ("a", chance.choice(UPLOADS))}
    if chance.random() < 0.2:
        files["mask"] = ("mask", MASK)
    if chance.random() < 0.2:
        accept = chance.choice(("image/png", "image/jpeg", "image/webp"))
        headers = {"Accept": accept}
        response = session.post(url + BASIC, fields, files=files, headers=headers, timeout=patience)
        if response.status_code != 200 or response.headers["content-type"] != accept:
            return f"status {response.status_code}: {response.text[:200]}"
        return wrong_image(response.content, _size(fields))
    response = session.post(url + BASIC, fields, files=files, timeout=patience)
    return _envelope_problem(response.status_code, response.content, _size(fields))


def _envelope_problem(status: int, content: bytes, size: tuple[int, int]) -> str:
    body = json.loads(content)
    if status != 200 or body["code"] != 0:
        return f"status {status}: {body['message']}"
    return wrong_image(base64.b64decode(body["data"]["image"]), size)


def _kept(session: Session, url: str, chance: Chance, patience: float) -> str:
    """The same request twice under one key: the same bytes, the second at no charge."""
    fields, files = _fields(chance), {"init_image": ("a", chance.choice(UPLOADS))}
    headers = {"Idempotency-Key": uuid.UUID(int=chance.getrandbits(128)).hex}
    answers = [
        session.post(url + BASIC, fields, files=files, headers=headers, timeout=patience)
        for _ in range(2)
    ]
    if answers[0].status_code != 200:
        return f"status {answers[0].status_code}: {answers[0].text[:200]}"
    if answers[0].content != answers[1].content:
        return "another answer to the same key"
    if "Idempotency-Replayed" not in answers[1].headers:
        return "made again for the same key"
    return _envelope_problem(answers[1].status_code, answers[1].content, _size(fields))


def _events(session: Session, url: str, chance: Chance, patience: float) -> str:
    fields = _fields(chance) | {"previews": chance.choice(("true", "false"))}
    response = session.post(
        url + BASIC,
        fields,
        files={"init_image": ("a", chance.choice(UPLOADS))},
        headers={"Accept": "text/event-stream"},
        timeout=patience,
    )
    name, _, data = response.text.strip().split("\n\n")[-1].partition("\n")
    if name != "event: result":
        return f"status {response.status_code}, the last event: {name} {data[:200]}"
    content = data.removeprefix("data: ").encode()
    return _envelope_problem(response.status_code, content, _size(fields))


def _openai(session: Session, url: str, chance: Chance, patience: float) -> str:
    width, height = chance.choice(SIZES)
    data: dict[str, Any] = {"prompt": chance.choice(PROMPTS), "steps": 12}
    data["size"] = f"{width}x{height}"
    data |= {"n": chance.randint(1, 2), "output_format": chance.choice(("png", "jpeg", "webp"))}
    by_address = chance.random() < 0.3
    if by_address:
        data["response_format"] = "url"
    files = {"image": ("a.png", chance.choice(UPLOADS))}
    response = session.post(url + "/v1/images/edits", data, files=files, timeout=patience)
    if response.status_code != 200:
        return f"status {response.status_code}: {response.text[:200]}"
    images = response.json()["data"]
    if len(images) != data["n"]:
        return f"{len(images)} images instead of {data['n']}"
    for image in images:
        if by_address:
            file = session.get(image["url"], timeout=patience).content
        else:
            file = base64.b64decode(image["b64_json"])
        if problem := wrong_image(file, (width, height)):
            return problem
    return ""


def _openai_events(session: Session, url: str, chance: Chance, patience: float) -> str:
    data = {"prompt": chance.choice(PROMPTS), "size": "320x320", "steps": 12, "stream": "true"}
    data["partial_images"] = str(chance.randint(0, 2))
    files = {"image": ("a.png", chance.choice(UPLOADS))}
    response = session.post(url + "/v1/images/edits", data, files=files, timeout=patience)
    _, _, last = response.text.strip().split("\n\n")[-1].partition("data: ")
    event = json.loads(last)
    if event["type"] != "image_edit.completed":
        return f"status {response.status_code}, the last event: {last[:200]}"
    return wrong_image(base64.b64decode(event["b64_json"]), (320, 320))


def _stability(session: Session, url: str, chance: Chance, patience: float) -> str:
    data = {"text_prompts[0][text]": chance.choice(PROMPTS), "steps": chance.randint(10, 20)}
    data |= {"sampler": chance.choice(CONTRACT_SAMPLERS), "image_strength": 0.5}
    response = session.post(
        url + "/v1/generation/stable-diffusion-v1-6/image-to-image",
        data,
        files={"init_image": ("a.png", file_of(gradient(384, 320)))},
        headers={"Accept": chance.choice(("application/json", "image/png"))},
        timeout=patience,
    )
    if response.status_code != 200:
        return f"status {response.status_code}: {response.text[:200]}"
    if response.headers["content-type"] == "image/png":
        return wrong_image(response.content, (384, 320))
    [artifact] = response.json()["artifacts"]
    return wrong_image(base64.b64decode(artifact["base64"]), (384, 320))


def _a1111(session: Session, url: str, chance: Chance, patience: float) -> str:
    width, height = chance.choice(SIZES)
    body = {
        "init_images": [base64.b64encode(chance.choice(UPLOADS)).decode()],
        "prompt": chance.choice(PROMPTS),
        "steps": chance.randint(10, 20),
        "width": width,
        "height": height,
        "denoising_strength": 0.6,
        "batch_size": chance.randint(1, 2),
        "sampler_name": chance.choice(A1111_SAMPLERS),
    }
    if chance.random() < 0.3:
        body["mask"] = base64.b64encode(MASK).decode()
        body["inpaint_full_res"] = chance.choice((True, False))
    response = session.post(url + "/sdapi/v1/img2img", json=body, timeout=patience)
    if response.status_code != 200:
        return f"status {response.status_code}: {response.text[:200]}"
    images = response.json()["images"]
    if len(images) != body["batch_size"]:
        return f"{len(images)} images instead of {body['batch_size']}"
    problems = (wrong_image(base64.b64decode(image)) for image in images)
    return next(filter(None, problems), "")


def _bad_input(session: Session, url: str, chance: Chance, patience: float) -> str:
    fields = _fields(chance)
    fields |= chance.choice(({"width": 321}, {"steps": "many"}, {"cfg_scale": 99}, {"prompt": ""}))
    files = {"init_image": ("a", chance.choice(UPLOADS))}
    return _refused(session.post(url + BASIC, fields, files=files, timeout=patience), 400)


def _bad_image(session: Session, url: str, chance: Chance, patience: float) -> str:
    upload = bytearray(UPLOADS[0])
    del upload[chance.randrange(1, len(upload) // 2) :]
    files = {"init_image": ("a", bytes(upload))}
    return _refused(session.post(url + BASIC, _fields(chance), files=files, timeout=patience), 400)


def _wrong_key(_: Session, url: str, chance: Chance, patience: float) -> str:
    headers = {"Authorization": f"wrong-{chance.random()}"}
    response = requests.post(url + BASIC, headers=headers, timeout=patience)
    return "" if response.status_code in (401, 429) else _refused(response, 401)


def _leaves(session: Session, url: str, chance: Chance, _: float) -> str:
    """Leave before the answer, or have it all the same."""
    files = {"init_image": ("a", chance.choice(UPLOADS))}
    try:
        left = requests.post(
            url + BASIC,
            _fields(chance) | {"steps": 50},
            files=files,
            headers={"Authorization": str(session.headers["Authorization"])},
            timeout=(10, chance.uniform(*LEAVES_AFTER)),
        )
    except requests.RequestException:
        return ""
    return _refused(left, 200)


def _looks(session: Session, url: str, chance: Chance, patience: float) -> str:
    path = chance.choice(("/health/live", "/health/ready", "/openapi.json", "/", "/metrics"))
    return _refused(session.get(url + path, timeout=patience), 200)


KINDS = (
    Kind("contract", 10, _contract),
    Kind("contract, twice under one key", 2, _kept),
    Kind("contract, as events", 5, _events),
    Kind("OpenAI", 5, _openai),
    Kind("OpenAI, as events", 3, _openai_events),
    Kind("Stability", 5, _stability),
    Kind("A1111", 5, _a1111),
    Kind("bad input", 2, _bad_input),
    Kind("bad image", 2, _bad_image),
    Kind("wrong key", 1, _wrong_key),
    Kind("leaves", 3, _leaves),
    Kind("health, page, metrics", 3, _looks),
)
