"""Draws noise and compiles sampler programs beside the engine's thread, the earliest due first."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
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
    """A request and its texts, or None after the last; compared by ``order`` alone."""

    order: tuple[float, float, int]
    request: tuple[RequestState, PromptChunks] | None = field(compare=False)


class Preparer:
    """One thread; a daemon, so that one that hangs does not keep the process.

    The noise of the largest takes seconds on a busy host: what is due sooner goes before it, and
    the watch expects what drawing so many numbers took of late.

    ``done`` is called in that thread with each request and what was made for it, or the error.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        watch: Watch,
        done: Callable[[RequestState, Prepared | Exception], None],
    ) -> None:
        self._bundle = bundle
        self._noise_schedule = NoiseSchedule.from_config(bundle.scheduler_config)
        self._watch = watch
        self._done = done
        self._inbox: queue.PriorityQueue[_Item] = queue.PriorityQueue()
        self._numbers, self._seconds = 1e6, 1e6 * _DRAW_SECONDS  # drawn of late, and what that took
        self._thread = threading.Thread(target=self._run, name="img2img-prepare", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, state: RequestState, texts: PromptChunks) -> None:
        """Prepare a request when those due before it are; never blocks."""
        self._inbox.put(_Item(due_order(state), (state, texts)))

    def close(self, timeout: float) -> None:
        """End after what waits, or leave the thread to itself after ``timeout`` seconds."""
        self._inbox.put(_Item((math.inf, math.inf, 0), None))
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while (item := self._inbox.get().request) is not None:
            state, texts = item
            if state.handle is not None and state.handle.done:
                continue  # the engine has ended meanwhile
            started = time.monotonic()
            try:
                prepared = self._prepare(state, texts)
            except Exception as error:
                logger.exception("request %s could not be prepared", state.request.request_id)
                self._done(state, error)
                continue
            state.spend("prepare", time.monotonic() - started)
            self._done(state, prepared)

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
