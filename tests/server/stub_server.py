"""A real server process with an engine that only waits: as many seconds as the prompt says, or
until the file that it names is there.

Run as `python -m tests.server.stub_server`, with the settings in the environment. With a model
named `slow` loading takes a second, with one named `broken` it fails, with one named `hanging` it
never ends. With `devices` its engines are in processes of their own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from functools import partial
from pathlib import Path

from pipelines.errors import EngineDraining
from pipelines.request import GenerationRequest, GenerationResult
from server.engine_service import LoadedModel, StartError
from server.observability.logs import configure_logging
from server.replicas.processes import start_on_devices
from server.serve import serve
from server.settings import Settings
from tests.server.stub_engine import StubEngine, StubHandle


class WaitingHandle(StubHandle):
    async def result(self) -> GenerationResult:
        engine = self.engine
        assert isinstance(engine, WaitingEngine)
        until = time.monotonic()
        file = Path(self.request.prompt)
        if not file.is_absolute():
            until += float(self.request.prompt)
            file = Path("/")
        while (time.monotonic() < until or not file.exists()) and not self.cancelled:
            await asyncio.sleep(0.01)
            if engine.stopped:
                raise EngineDraining("the server is shutting down", 5.0)
        engine.running -= 1
        return GenerationResult(self.request.image, self.request.seed)


class WaitingEngine(StubEngine):
    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.stopped = False

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
        *,
        taken: bool = False,
    ) -> StubHandle:
        self.running += 1
        return WaitingHandle(self, request)

    def drain(self, grace: float) -> None:
        until = time.monotonic() + grace
        while self.running and time.monotonic() < until:
            time.sleep(0.01)
        self.stopped = True
        super().drain(grace)


def start(settings: Settings) -> LoadedModel:
    if settings.model == "broken":
        raise StartError("no such weights")
    if settings.model == "slow":
        time.sleep(1.0)
    if settings.model == "hanging":
        # One write, which nothing else that is written can come between.
        print(f"loading in process {os.getpid()}\n", end="", flush=True)
        time.sleep(3600)
    return LoadedModel(engine=WaitingEngine(), name="stub", device="cpu", dtype="float32")


if __name__ == "__main__":
    settings = Settings()
    configure_logging(settings.log_level, settings.log_format)
    apart = partial(start_on_devices, starter="tests.server.stub_server:start")
    starter = apart if settings.devices else start
    sys.exit(serve(settings, starter, announce=partial(print, flush=True)))
