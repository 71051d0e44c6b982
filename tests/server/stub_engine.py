"""An engine without a model: it gives back the picture it got, when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from pipelines.engine.statistics import EngineSnapshot
from pipelines.errors import EngineDraining, GenerationCancelled, GenerationError
from pipelines.request import GenerationRequest, GenerationResult, Progress
from pipelines.scheduler.cost_model import SizeCost
from pipelines.timeline import Timeline
from server.engine_service import LoadedModel, ModelStarter
from server.img2img.moderation import SafetyPolicy
from server.settings import Settings


class StubHandle:
    """Ends at once, or when `gate` is set; with `outcome` if that is an error."""

    latest: Progress | None = None

    def __init__(self, engine: StubEngine, request: GenerationRequest) -> None:
        self.engine = engine
        self.request = request
        self.cancelled = False
        self.timeline = Timeline()

    async def result(self) -> GenerationResult:
        while self.engine.holding and not self.cancelled:
            await asyncio.sleep(0.005)
        if self.cancelled:
            raise GenerationCancelled("withdrawn")
        if self.engine.outcome is not None:
            raise self.engine.outcome
        return GenerationResult(self.request.image, self.request.seed)

    async def progress(self) -> AsyncIterator[Progress]:
        yield Progress(30, 30, 1, 1)
        while self.engine.silent and not self.cancelled:
            await asyncio.sleep(0.005)

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def done(self) -> bool:
        return self.cancelled or not self.engine.holding


class StubEngine:
    def __init__(self) -> None:
        self.ready = False
        self.alive = False
        self.obstacle: str | None = None
        self.holding = False
        self.silent = False
        self.refusal: GenerationError | None = None
        self.room = 0  # requests that are taken before that
        self.outcome: BaseException | None = None
        self.handles: list[StubHandle] = []
        self.timeouts: list[float | None] = []
        self.arrivals: list[float | None] = []
        self.drained_with: list[float] = []
        self.clip: str | None = "stub-clip"
        self.safety: SafetyPolicy | None = None

    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot(running=sum(not handle.cancelled for handle in self.handles))

    def costs_by_size(self) -> Sequence[SizeCost]:
        return ()

    def start(self) -> None:
        self.ready = self.alive = True

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
        *,
        taken: bool = False,
    ) -> StubHandle:
        if self.refusal is not None and len(self.handles) >= self.room:
            raise self.refusal
        if self.drained_with:
            raise EngineDraining("the server is shutting down", 5.0)
        handle = StubHandle(self, request)
        self.handles.append(handle)
        self.timeouts.append(timeout)
        self.arrivals.append(arrived)
        return handle

    def drain(self, grace: float) -> None:
        self.drained_with.append(grace)
        self.ready = self.alive = False

    @property
    def last_request(self) -> GenerationRequest:
        return self.handles[-1].request

    def starter(self) -> ModelStarter:
        def start(_: Settings) -> LoadedModel:
            return LoadedModel(
                engine=self,
                name="stub",
                device="cpu",
                dtype="float32",
                clip=self.clip,
                safety=self.safety,
            )

        return start
