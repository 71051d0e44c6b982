"""Requests to the other APIs, for tests with the stub engine."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from starlette.testclient import TestClient

from tests.server.conftest import PATH
from tests.server.pictures import file_of, gradient

SIDE = 320
EDITS = "/v1/images/edits"
GENERATIONS = "/v1/images/generations"
STABILITY = "/v1/generation/stable-diffusion-v1-5"
IMG2IMG = "/sdapi/v1/img2img"
PICTURE = file_of(gradient(SIDE, SIDE))
BASE64 = base64.b64encode(PICTURE).decode()


def mask_file(values: npt.ArrayLike, file_format: str = "PNG", **options: Any) -> bytes:
    """Return the file of an image with these values."""
    return file_of(Image.fromarray(np.asarray(values, np.uint8)), file_format, **options)


def right_half() -> npt.NDArray[np.uint8]:
    """Return values of an L image whose right half is white."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[:, SIDE // 2 :] = 255
    return values


@dataclass
class Apis:
    """Posts a small request to each API; keyword arguments change its fields, None leaves out."""

    client: TestClient
    headers: dict[str, str] = field(default_factory=dict)

    def contract(self, **headers: str) -> Any:
        return self.client.post(
            PATH,
            data={"prompt": "a cat"},
            files={"init_image": ("a.png", PICTURE)},
            headers={**self.headers, **headers},
        )

    def edit(self, *, files: Any = None, headers: Any = None, **fields: Any) -> Any:
        sent = {"prompt": "a cat", "steps": "10", **fields}
        return self.client.post(
            EDITS,
            data={name: value for name, value in sent.items() if value is not None},
            files={"image": ("a.png", PICTURE)} if files is None else files,
            headers={**self.headers, **(headers or {})},
        )

    def json(self, path: str, body: Any, *, headers: Any = None) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, headers={**self.headers, **(headers or {})})

    def img2img(self, *, headers: Any = None, **fields: Any) -> Any:
        body = {
            "init_images": [BASE64],
            "prompt": "a cat",
            "steps": 10,
            "width": SIDE,
            "height": SIDE,
            "sampler_name": "Euler",
            **fields,
        }
        return self.json(IMG2IMG, body, headers=headers)

    def stability(
        self,
        *,
        path: str = "/image-to-image",
        files: Any = None,
        headers: Any = None,
        **fields: Any,
    ) -> Any:
        sent = {"text_prompts[0][text]": "a cat", "steps": "10", **fields}
        return self.client.post(
            STABILITY + path,
            data={name: value for name, value in sent.items() if value is not None},
            files={"init_image": ("a.png", PICTURE)} if files is None else files,
            headers={**self.headers, **(headers or {})},
        )


def message_of(response: Any) -> str:
    """Return the message of a failure in any of the shapes."""
    body = response.json()
    if "error" in body and isinstance(body["error"], dict):
        return str(body["error"]["message"])
    return str(body.get("errors") or body["message"])


def ignored(response: Any) -> set[str]:
    """Return the names of X-Ignored-Fields."""
    told = response.headers.get("x-ignored-fields", "")
    return set(told.split(", ")) if told else set()
