"""Starts the engine off the event loop, says whether it can serve, and drains it.

Loading takes seconds to minutes. The port is open meanwhile, so that an orchestrator sees a live
process that is not ready yet.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from models.embedded.vocabulary import demo_notice
from pipelines.engine.statistics import EngineSnapshot
from pipelines.request import GenerationRequest, GenerationResult, Progress
from pipelines.scheduler.cost_model import SizeCost
from pipelines.timeline import Timeline
from server.cpus import set_tensor_threads
from server.img2img.moderation import SafetyPolicy
from server.settings import Settings

if TYPE_CHECKING:
    from models.auxiliary.safety_checker import SafetyModel
    from models.bundle import ModelBundle

logger = logging.getLogger(__name__)


class Handle(Protocol):
    """One submitted request."""

    @property
    def timeline(self) -> Timeline: ...

    async def result(self) -> GenerationResult: ...

    def progress(self) -> AsyncIterator[Progress]: ...

    @property
    def latest(self) -> Progress | None: ...

    @property
    def done(self) -> bool: ...

    def cancel(self) -> None: ...


class RunningEngine(Protocol):
    """The part of `pipelines.engine.engine.Engine` that the server needs."""

    @property
    def ready(self) -> bool: ...

    @property
    def alive(self) -> bool: ...

    @property
    def obstacle(self) -> str | None: ...

    def snapshot(self) -> EngineSnapshot: ...

    def costs_by_size(self) -> Sequence[SizeCost]: ...

    def start(self) -> None: ...

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
        *,
        taken: bool = False,
    ) -> Handle: ...

    def drain(self, grace: float) -> None: ...


@dataclass(frozen=True)
class LoadedModel:
    """An engine that is not started yet, and what it runs."""

    engine: RunningEngine
    name: str
    device: str
    dtype: str
    clip: str | None = None
    """The CLIP model that guides; None refuses every preset but NONE."""
    safety: SafetyPolicy | None = None
    """What checks finished pictures; None hands them out unchecked."""

    @property
    def ready(self) -> bool:
        """Return whether a request that comes now can get its picture."""
        return self.engine.ready and self.obstacle is None

    @property
    def alive(self) -> bool:
        """Return whether waiting may help."""
        return self.engine.alive and (self.safety is None or self.safety.alive)

    @property
    def obstacle(self) -> str | None:
        """Say what hangs, or None."""
        if self.engine.obstacle is not None or self.safety is None:
            return self.engine.obstacle
        return self.safety.obstacle


class StartError(Exception):
    """The engine cannot be started; the message is fit for the operator."""


ModelStarter = Callable[[Settings], LoadedModel]


def load_model(settings: Settings, *, warm_up: bool = True) -> LoadedModel:
    """Load the weights that `settings` name. Raises StartError."""
    logger.info("loading", extra={"fields": {"model": settings.model}})
    # Imported here: importing torch takes seconds in which the port would not answer.
    from models.auxiliary.choose import choose_clip
    from models.loading import loader
    from pipelines.engine.engine import Engine
    from server.engine_config import engine_config
    from server.memory_plan import memory_policy

    threads = set_tensor_threads(settings.threads)
    try:
        bundle = loader.load_model(
            settings.model_spec, device=settings.device, dtype=settings.dtype
        )
        bundle.clip = choose_clip(bundle, settings.clip_model)
        checker = safety_model(bundle, settings)
    except loader.ModelLoadError as error:
        raise StartError(str(error)) from error
    facts = {"model": bundle.name, **bundle.facts, "threads": threads}
    logger.info("loaded", extra={"fields": facts})
    if notice := demo_notice(settings.model):
        logger.warning(notice)
    memory = memory_policy(bundle, settings, checker=checker)
    bundle.vae_tile_above = memory.tile_above
    logger.info("memory", extra={"fields": {"plan": memory.in_words(bundle.downscale)}})
    return LoadedModel(
        engine=Engine(bundle, engine_config(settings, bundle, memory, warm_up=warm_up)),
        name=bundle.name,
        device=str(bundle.device),
        dtype=str(bundle.dtype).removeprefix("torch."),
        clip=None if bundle.clip is None else bundle.clip.name,
        safety=_safety_policy(checker, settings),
    )


def safety_model(bundle: ModelBundle, settings: Settings) -> SafetyModel | None:
    """Load what checks images, None where none is asked for. Raises ModelLoadError."""
    if settings.safety == "off":
        return None
    from models.auxiliary.choose import choose_safety

    return choose_safety(bundle, settings.safety_checker, settings.model_revision)


def _safety_policy(checker: SafetyModel | None, settings: Settings) -> SafetyPolicy | None:
    if checker is None or settings.safety == "off":
        return None
    from pipelines.safety_check import SafetyCheck

    return SafetyPolicy(settings.safety, settings.safety_threshold, SafetyCheck(checker))


class State(Enum):
    """The state of the engine's life, in words for a client."""

    LOADING = "the model is loading"
    SERVING = "ready"
    DRAINING = "the server is shutting down"
    FAILED = "the model could not be loaded"


class EngineHost:
    """Owns the engine from loading to drained."""

    def __init__(self, settings: Settings, starter: ModelStarter = load_model) -> None:
        self._settings = settings
        self._starter = starter
        self._state = State.LOADING
        self._model: LoadedModel | None = None
        self._lock = threading.Lock()
        self._drain_lock = threading.Lock()
        self._drained = False  # with its lock
        self._began = time.monotonic()
        self.failure: Exception | None = None

    @property
    def model(self) -> LoadedModel | None:
        """The loaded model, also once it drains; None before that."""
        return self._model

    @property
    def serving_model(self) -> LoadedModel | None:
        """The loaded model, if it takes requests now."""
        model = self._model
        serves = self._state is State.SERVING and model is not None and model.ready
        return model if serves else None

    @property
    def obstacle(self) -> str:
        """The reason why it does not serve, in words for a client."""
        if self._overdue:
            return f"the model has not loaded within {self._settings.start_timeout:g} s"
        if self._state is not State.SERVING:
            return str(self._state.value)
        obstacle = None if self._model is None else self._model.obstacle
        return obstacle or "the engine has stopped"

    @property
    def live(self) -> bool:
        """Return whether waiting may help: false once loading failed or takes too long, the engine
        has died, or what hangs has done so for too long to come back."""
        if self._state is State.FAILED or self._overdue:
            return False
        model = self._model
        return self._state is not State.SERVING or (model is not None and model.alive)

    @property
    def _overdue(self) -> bool:
        """Return whether it loads for longer than a start may take. Engines elsewhere are looked
        after by who starts them: a restart here would not bring them."""
        if self._state is not State.LOADING or self._settings.has_replicas:
            return False
        return time.monotonic() - self._began > self._settings.start_timeout

    def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Load and warm up in a thread of its own, and return at once.

        `on_failure` is called in that thread if it does not succeed; `failure` then says why.
        """
        self._began = time.monotonic()
        # A daemon, so that a server that is stopped while it loads does not wait for it.
        thread = threading.Thread(target=self._load, args=(on_failure,), name="load", daemon=True)
        thread.start()

    def _load(self, on_failure: Callable[[], None]) -> None:
        began = time.perf_counter()
        try:
            model = self._starter(self._settings)
            if not self._settings.has_replicas:  # whose processes have done it
                logger.info("warming up: steps and their costs on this device")
            model.engine.start()
        except Exception as error:
            if not isinstance(error, StartError):
                logger.exception("the engine could not be started")
            self.failure = error
            with self._lock:
                self._state = State.FAILED
            on_failure()
            return
        with self._lock:
            self._model = model
            abandoned = self._state is State.DRAINING
            if not abandoned:
                self._state = State.SERVING
        if abandoned:
            self._drain_model(0.0)
            return
        logger.info(
            "ready",
            extra={
                "fields": {
                    "model": model.name,
                    "device": model.device,
                    "dtype": model.dtype,
                    "seconds": round(time.perf_counter() - began, 2),
                }
            },
        )

    def refuse_new(self) -> None:
        """Take no more requests from now on."""
        with self._lock:
            if self._state is not State.FAILED:
                self._state = State.DRAINING

    async def drain(self, grace: float) -> None:
        """Take no more requests and give the running ones `grace` seconds. Safe to call twice."""
        self.refuse_new()
        loop, drained = asyncio.get_running_loop(), asyncio.Event()
        # A daemon, so that a second signal can end the process without waiting for it.
        threading.Thread(
            target=self._drain, args=(grace, loop, drained), name="drain", daemon=True
        ).start()
        await drained.wait()

    def _drain(self, grace: float, loop: asyncio.AbstractEventLoop, drained: asyncio.Event) -> None:
        try:
            self._drain_model(grace)
        except Exception:
            logger.exception("draining failed")
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(drained.set)

    def _drain_model(self, grace: float) -> None:
        with self._drain_lock:
            # Kept: what it did, and the requests that end after it, are still counted.
            if self._model is not None and not self._drained:
                self._drained = True
                self._model.engine.drain(grace)
