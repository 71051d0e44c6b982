"""A server whose engine gives back the fitted picture at once, for fuzzing its HTTP side."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence

from pipelines.engine.statistics import EngineSnapshot
from pipelines.request import GenerationRequest, GenerationResult, Progress
from pipelines.scheduler.cost_model import SizeCost
from pipelines.timeline import Timeline
from server.engine_service import LoadedModel
from server.observability.logs import configure_logging
from server.serve import serve
from server.settings import Settings


class EchoHandle:
    """A request that has ended already."""

    latest: Progress | None = None
    done = True

    def __init__(self, request: GenerationRequest) -> None:
        self.timeline = Timeline()
        self._result = GenerationResult(request.image, request.seed)

    async def result(self) -> GenerationResult:
        return self._result

    async def progress(self) -> AsyncIterator[Progress]:
        yield Progress(30, 30, 1, 1)

    def cancel(self) -> None:
        pass


class EchoEngine:
    """An engine without a model."""

    ready = alive = True
    obstacle = None

    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot()

    def costs_by_size(self) -> Sequence[SizeCost]:
        return ()

    def start(self) -> None:
        pass

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
        *,
        taken: bool = False,
    ) -> EchoHandle:
        return EchoHandle(request)

    def drain(self, grace: float) -> None:
        pass


def start(_: Settings) -> LoadedModel:
    return LoadedModel(engine=EchoEngine(), name="echo", device="cpu", dtype="float32", clip="echo")


if __name__ == "__main__":
    settings = Settings.model_validate({})
    configure_logging(settings.log_level, settings.log_format)
    sys.exit(serve(settings, start))
