"""Draws noise and compiles sampler programs beside the engine's thread, the earliest due first."""

from __future__ import annotations

import logging
import math
import threading
import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from models.bundle import ModelBundle
from models.device import host_tensor
from models.noise_schedule import NoiseSchedule
from pipelines.engine.watch import Watch
from pipelines.prompt.encoder import PromptChunks
from pipelines.request import GenerationRequest
from pipelines.samplers.programs import SamplerProgram, make_program
from pipelines.scheduler.cost_model import MOST_ERROR
from pipelines.scheduler.request_state import RequestState, due_order
from pipelines.vae.encode import image_digest
from pipelines.vae.mask import latent_mask
from pipelines.vae.noise import RequestNoise

logger = logging.getLogger(__name__)

_DRAW_SECONDS = 25e-9
"""Of a random number, until it has been measured: two cores took 9 to 27 ns, busy ones 180."""
_MEMORY = 0.8
"""What the numbers of all requests before still count beside those of one, in what is measured."""
AHEAD_BYTES = 128 * 2**20
"""Of noise that is drawn before its request is begun: of five requests for 1536 x 1536 with 50
draws, of hundreds of the usual ones. On CUDA it is pinned, and torch keeps such blocks for good."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request's texts, sampler program and noise, and what else is made of it.

    ``digest`` is its picture's; empty where it is not encoded. ``mask`` is (1, h, w) float32.
    """

    texts: PromptChunks
    program: SamplerProgram
    noise: RequestNoise
    digest: bytes
    mask: torch.Tensor | None = None


@dataclass(frozen=True, order=True)
class _Item:
    """A request and its texts; compared by ``order`` alone."""

    order: tuple[float, float, int]
    state: RequestState = field(compare=False)
    texts: PromptChunks = field(compare=False)


@dataclass
class _Ahead:
    """A request that is prepared, or being prepared, and not yet begun."""

    order: tuple[float, float, int]
    nbytes: int = 0


class Preparer:
    """One thread; a daemon, so that one that hangs does not keep the process.

    The noise of the largest takes seconds on a busy host: what is due sooner goes before it, and
    the watch expects what drawing so many numbers took of late. It rests while ``ahead_bytes`` are
    prepared and not begun, unless a request is due before one of those: what the device would begin
    next of all that wait is always prepared.

    ``done`` is called in that thread with each request and what was made for it, or the error.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        watch: Watch,
        done: Callable[[RequestState, Prepared | Exception], None],
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        self._bundle = bundle
        self._noise_schedule = NoiseSchedule.from_config(bundle.scheduler_config)
        self._watch = watch
        self._done = done
        self._ahead_bytes = ahead_bytes
        self._changed = threading.Condition()  # with it what follows is read and written
        self._waiting: list[_Item] = []  # in order
        self._ahead: dict[int, _Ahead] = {}  # by ident
        self._closing = False
        self._numbers, self._seconds = 1e6, 1e6 * _DRAW_SECONDS  # drawn of late, and what that took
        self._thread = threading.Thread(target=self._run, name="img2img-prepare", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, state: RequestState, texts: PromptChunks) -> None:
        """Prepare a request when those due before it are; never blocks."""
        with self._changed:
            insort(self._waiting, _Item(due_order(state), state, texts))
            self._changed.notify()

    def begun(self, ident: int) -> None:
        """Hear that a request waits no longer: it has been begun, or has ended."""
        with self._changed:
            self._ahead.pop(ident, None)
            self._waiting = [item for item in self._waiting if item.state.ident != ident]
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """End after what waits, or leave the thread to itself after ``timeout`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while (item := self._next()) is not None:
            self._make(item)
            del item  # nothing of a request is held while there is no other

    def _make(self, item: _Item) -> None:
        state = item.state
        if state.handle is not None and state.handle.done:
            self.begun(state.ident)  # it has ended meanwhile
            return
        started = time.monotonic()
        try:
            prepared = self._prepare(state, item.texts)
        except Exception as error:
            logger.exception("request %s could not be prepared", state.request.request_id)
            self._done(state, error)
            return
        with self._changed:
            if (ahead := self._ahead.get(state.ident)) is not None:
                ahead.nbytes = prepared.noise.nbytes
        state.spend("prepare", time.monotonic() - started)
        self._done(state, prepared)

    def _next(self) -> _Item | None:
        """Wait for the next request to prepare; None after the last."""
        with self._changed:
            while not (self._may_go_on() if self._waiting else self._closing):
                self._changed.wait()
            if not self._waiting:
                return None
            item = self._waiting.pop(0)
            self._ahead[item.state.ident] = _Ahead(item.order)
            return item

    def _may_go_on(self) -> bool:
        ahead = self._ahead.values()
        if self._closing or sum(one.nbytes for one in ahead) < self._ahead_bytes:
            return True
        return self._waiting[0].order < max(one.order for one in ahead)

    def _prepare(self, state: RequestState, texts: PromptChunks) -> Prepared:
        request = state.request
        with self._watch.unit():
            program = make_program(
                request.sampler,
                request.steps,
                request.strength,
                self._noise_schedule,
                request.schedule,
            )
        shape = (self._bundle.latent_channels, state.key.height, state.key.width)
        numbers = (2 + program.draws) * math.prod(shape)
        expected, began = numbers * self._seconds / self._numbers, time.monotonic()
        with self._watch.unit(expected):
            noise, digest, mask = self._draw(request, shape, program.draws)
        # One that hung says nothing, but a host may be this much slower.
        took = min(time.monotonic() - began, (1.0 + MOST_ERROR) * expected)
        self._numbers = _MEMORY * self._numbers + numbers
        self._seconds = _MEMORY * self._seconds + took
        return Prepared(texts, program, noise, digest, mask)

    def _draw(
        self, request: GenerationRequest, shape: tuple[int, int, int], draws: int
    ) -> tuple[RequestNoise, bytes, torch.Tensor | None]:
        device = self._bundle.device
        noise = RequestNoise.of(request, shape, draws).for_device(device)
        # The digest here and not at the encode: it takes milliseconds of a large picture.
        digest = b"" if request.from_noise else image_digest(request.image)
        mask = None
        if request.mask is not None:
            mask = host_tensor(latent_mask(request.mask, self._bundle.downscale), device)
        return noise, digest, mask
