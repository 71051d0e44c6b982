"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton, which diffusers does where there is one.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from models.bundle import ModelBundle
from models.loading.loader import load_bundle
from pipelines.request import Pixels
from scripts.services.throwaway_postgres import NoPostgres, Postgres, throwaway_postgres
from scripts.services.throwaway_redis import NoRedis, Redis, throwaway_redis
from tests.server.databases import KINDS, new_postgres_database, sqlite_url
from tests.services import skip_or_fail
from tests.tiers import (  # noqa: F401  hooks
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_ignore_collect,
)
from tests.tiny_model import tiny_bundle, tiny_clip, write_tiny_clip, write_tiny_model
from tests.workers import pytest_xdist_make_scheduler  # noqa: F401  a hook


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the diffusers layout with a tiny model of random weights."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> ModelBundle:
    return tiny_bundle(tiny_folder)


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16], ids=str)
def either_tiny(request: pytest.FixtureRequest, tiny_folder: Path) -> ModelBundle:
    """The tiny model in each dtype that `auto` takes on a CPU."""
    return tiny_bundle(tiny_folder, request.param)


@pytest.fixture(scope="session")
def embedded() -> ModelBundle:
    """The model that ships, in float32 on the CPU."""
    return load_bundle(device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in transformers' layout with a tiny CLIP of random weights."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="session")
def guided(tiny: ModelBundle, tiny_clip_folder: Path) -> ModelBundle:
    """The tiny model with a CLIP model beside it."""
    return replace(tiny, clip=tiny_clip(tiny_clip_folder, tiny))


@pytest.fixture
def picture() -> Pixels:
    """A picture with soft colours and one hard edge, 128 x 128.

    Smaller than the contract allows, which only the server asks: a step of eight rows of it takes a
    seventh of one at 320 x 320.
    """
    y, x = np.mgrid[0:128, 0:128] / 128
    image = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], axis=-1)
    image[40:80, 32:96] = (0.9, 0.2, 0.1)
    return (image * 255).round().astype(np.uint8)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of the tests' own."""
    try:
        with throwaway_postgres() as server:
            yield server
    except NoPostgres as reason:
        skip_or_fail(f"without PostgreSQL: {reason}")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis server of the tests' own; `redis` hands it out running and empty."""
    try:
        with throwaway_redis() as server:
            yield server
    except NoRedis as reason:
        skip_or_fail(f"without Redis: {reason}")


@pytest.fixture
def redis(redis_server: Redis) -> Iterator[Redis]:
    """The tests' Redis server, running and empty; a test may stop and start it."""
    redis_server.start()
    redis_server.flush()
    yield redis_server
    redis_server.start()


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new, empty database: the test runs once on each kind."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
        return
    with new_postgres_database(request.getfixturevalue("postgres")) as url:
        yield url
