"""One server with the embedded model, two keys and a database, and images to send."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.server.pictures import file_of, gradient
from tests.server.server_process import PRODUCT, ServerProcess, running_server

KEY = "key-of-clients"
OTHER_KEY = "another-key-of-clients"
SIDE = 320


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that all tests of a session share."""
    folder = tmp_path_factory.mktemp("clients")
    settings = {"api_keys": f"{KEY},{OTHER_KEY}", "database_url": f"sqlite:///{folder}/keys.db"}
    with running_server(PRODUCT, folder, "serve", dtype="float32", **settings) as running:
        running.wait_for("/health/ready")
        yield running


@pytest.fixture(scope="session")
def image() -> bytes:
    """A PNG of 320 x 320."""
    return file_of(gradient(SIDE, SIDE))


@pytest.fixture(scope="session")
def mask() -> bytes:
    """A PNG whose right half is transparent, and white where it is."""
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:, SIDE // 2 :] = 0
    light = 255 - alpha
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([light, light, light, alpha])).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def light_mask() -> bytes:
    """A PNG without transparency whose right half is white, and black where it is not."""
    light = np.zeros((SIDE, SIDE), np.uint8)
    light[:, SIDE // 2 :] = 255
    return file_of(Image.fromarray(light))


def pixels(file: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the `(height, width, 3)` uint8 of a file."""
    return np.array(Image.open(io.BytesIO(file)).convert("RGB"))
