from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.images.workers.limits import DecoderLimits
from server.images.workers.pool import DecoderPool
from server.observability.logs import OWN_PACKAGES
from server.settings import ENV_PREFIX, Settings
from tests.server.pictures import file_of, four_corners
from tests.server.stub_engine import StubEngine

PATH = "/api/generate/basic/imageToImage"
ENGINES = (
    pytest.param({}, id="an engine"),
    pytest.param({"devices": "2", "device": "cpu"}, id="engines", marks=pytest.mark.slow("faults")),
)
"""What is behind a server: an engine in its process, or two in processes of their own."""


@pytest.fixture(scope="session")
def data_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """New folders; pytest's own way reads the names of the thousands that there are."""
    root = tmp_path_factory.mktemp("data")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, data_folders: Iterator[Path]) -> None:
    for name in list(os.environ):
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    # Whoever runs the tests may have keys of their own.
    folder = next(data_folders)
    folder.mkdir()
    monkeypatch.setenv(f"{ENV_PREFIX}DATA_DIR", str(folder))


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """The command line sets up the process's logging."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    loggers = [root, *map(logging.getLogger, OWN_PACKAGES)]
    levels = [logger.level for logger in loggers]
    yield
    root.handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def quiet_test_client() -> None:
    """The client under TestClient logs whole addresses; only the server's lines are of interest."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)


@pytest.fixture
def engine() -> StubEngine:
    return StubEngine()


@pytest.fixture(scope="session")
def decoders() -> Iterator[DecoderPool]:
    """Decoder processes that all applications of the tests share."""
    pool = DecoderPool(2, DecoderLimits())
    # Tests with short deadlines are not to wait for the first decoder's start.
    asyncio.run(pool.decode(file_of(four_corners(64, 64)), None))
    yield pool
    pool.close()


MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_client(engine: StubEngine, decoders: DecoderPool) -> Iterator[MakeClient]:
    """Makes clients of an application with the given settings, whose engine is the stub."""
    with ExitStack() as stack:

        def make(**settings: Any) -> TestClient:
            app = create_app(Settings(**settings), starter=engine.starter(), decoders=decoders)
            client = stack.enter_context(
                TestClient(app, raise_server_exceptions=False, follow_redirects=False)
            )
            give_up = time.monotonic() + 10
            while not engine.ready and time.monotonic() < give_up:
                time.sleep(0.005)
            assert engine.ready
            return client

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()


@pytest.fixture(scope="session")
def picture_file() -> bytes:
    return file_of(four_corners(640, 320))


Send = Callable[..., Any]


@pytest.fixture
def send(client: TestClient, picture_file: bytes) -> Send:
    """Posts the form: the picture, a prompt, and what is given; None leaves a field out."""

    def post(
        files: dict[str, Any] | None = None, headers: dict[str, str] | None = None, **fields: Any
    ) -> Any:
        data = {"prompt": "a cat", **fields}
        return client.post(
            PATH,
            data={name: value for name, value in data.items() if value is not None},
            files={"init_image": ("a.png", picture_file)} if files is None else files,
            headers=headers,
        )

    return post
