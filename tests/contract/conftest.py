"""A real server process with a real model, started once, and what clients of the contract do.

It runs in the shipped environment (see server_process.py), which has what requirements.lock lists.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.server.pictures import file_of, gradient
from tests.server.server_process import ServerProcess, running_server

PATH = "/api/generate/basic/imageToImage"
KEY = "your-auth-token"

QUICK = {"width": 320, "height": 320, "steps": 10, "image_strength": 0.9}
"""One evaluation of a small picture."""


def contract_model() -> str:
    """The weights to serve: the contract holds on any."""
    return os.environ.get("CONTRACT_TEST_MODEL", "embedded")


@dataclass(frozen=True)
class Answer:
    """A success, unpacked as a client does."""

    image: Image.Image
    png: bytes
    seed: int


@dataclass(frozen=True)
class Client:
    server: ServerProcess

    def post(self, *, picture: bytes | None, key: str | None = KEY, **fields: Any) -> Any:
        """Posts the form as the contract's example does."""
        return requests.post(
            self.server.url + PATH,
            data=fields,
            files=None if picture is None else {"init_image": ("init_image.png", picture)},
            headers=None if key is None else {"Authorization": key},
            timeout=300,
        )

    def ask(self, picture: bytes, **fields: Any) -> Answer:
        """The picture, or an assertion with the server's message."""
        response = self.post(picture=picture, **{"prompt": "a blue circle", **fields})
        body = response.json()
        assert body["code"] == 0, body
        assert response.status_code == 200
        assert list(body) == ["code", "message", "data"]
        assert body["message"] == "success"
        assert list(body["data"]) == ["image", "seed"]
        png = base64.b64decode(body["data"]["image"], validate=True)
        image = Image.open(io.BytesIO(png))
        assert (image.format, image.mode) == ("PNG", "RGB")
        image.load()
        assert type(body["data"]["seed"]) is int
        return Answer(image, png, body["data"]["seed"])


LEARNT_WORD = "<loud>"


def embeddings(folder: Path) -> Path:
    """A folder with a textual inversion of the embedded model."""
    folder.mkdir()
    vectors = 3 * torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    save_file({LEARNT_WORD: vectors}, folder / "learned_embeds.safetensors")
    return folder


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("server")
    settings = {"model": contract_model(), "api_keys": KEY, "cors_origins": "https://a.example"}
    if contract_model() == "embedded":
        settings["embeddings"] = str(embeddings(folder / "embeddings"))
    with running_server("server.cli", folder, "serve", **settings) as server:
        server.wait_for("/health/live")
        server.wait_for("/health/ready", seconds=300)
        yield Client(server)


@pytest.fixture(scope="session")
def picture() -> bytes:
    return file_of(gradient(600, 400))


@pytest.fixture(scope="session")
def small_picture() -> bytes:
    return file_of(gradient(320, 320))
