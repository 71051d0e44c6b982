"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundle import ModelBundle
from pipelines.request import Pixels
from tests.tiny_model import tiny_bundle, write_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the diffusers layout with a tiny model of random weights."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> ModelBundle:
    return tiny_bundle(tiny_folder)


@pytest.fixture
def picture() -> Pixels:
    """A 320 x 320 picture with soft colours and one hard edge."""
    y, x = np.mgrid[0:320, 0:320] / 320
    image = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], axis=-1)
    image[100:200, 80:240] = (0.9, 0.2, 0.1)
    return (image * 255).round().astype(np.uint8)
