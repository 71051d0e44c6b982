from __future__ import annotations

from pathlib import Path

import pytest

from scripts.checkpoints.random_checkpoint import write_checkpoint
from tests.models.narrow import write_configuration


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a narrow Stable Diffusion 1.x."""
    return write_configuration(tmp_path_factory.mktemp("narrow") / "configuration")


@pytest.fixture(scope="session")
def checkpoint_file(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow checkpoint in the original layout, float16, without EMA keys."""
    path = tmp_path_factory.mktemp("checkpoint") / "narrow.safetensors"
    write_checkpoint(path, narrow)
    return path
