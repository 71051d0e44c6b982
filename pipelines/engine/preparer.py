"""Draws noise and compiles sampler programs beside the engine's thread, in the order of arrival."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.bundle import ModelBundle
from models.device import host_tensor
from pipelines.engine.watch import Watch
from pipelines.prompt.encoder import PromptChunks
from pipelines.samplers.programs import SamplerProgram, make_program
from pipelines.samplers.schedules import NoiseSchedule
from pipelines.scheduler.request_state import RequestState
from pipelines.vae.encode import image_digest
from pipelines.vae.mask import latent_mask
from pipelines.vae.noise import RequestNoise

logger = logging.getLogger(__name__)


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


class Preparer:
    """One thread; a daemon, so that one that hangs does not keep the process.

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
        self._inbox: queue.SimpleQueue[tuple[RequestState, PromptChunks] | None]
        self._inbox = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="img2img-prepare", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, state: RequestState, texts: PromptChunks) -> None:
        """Prepare a request when those before it are; never blocks."""
        self._inbox.put((state, texts))

    def close(self, timeout: float) -> None:
        """End after what waits, or leave the thread to itself after ``timeout`` seconds."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while (item := self._inbox.get()) is not None:
            state, texts = item
            if state.handle is not None and state.handle.done:
                continue  # the engine has ended meanwhile
            started = time.monotonic()
            try:
                with self._watch.unit():
                    prepared = self._prepare(state, texts)
            except Exception as error:
                logger.exception("request %s could not be prepared", state.request.request_id)
                self._done(state, error)
                continue
            state.spend("prepare", time.monotonic() - started)
            self._done(state, prepared)

    def _prepare(self, state: RequestState, texts: PromptChunks) -> Prepared:
        request = state.request
        program = make_program(
            request.sampler,
            request.steps,
            request.strength,
            self._noise_schedule,
            request.schedule,
        )
        device = self._bundle.device
        shape = (self._bundle.latent_channels, state.key.height, state.key.width)
        noise = RequestNoise.of(request, shape, program.draws).for_device(device)
        # The digest here and not at the encode: it takes milliseconds of a large picture.
        digest = b"" if request.from_noise else image_digest(request.image)
        mask = None
        if request.mask is not None:
            mask = host_tensor(latent_mask(request.mask, self._bundle.downscale), device)
        return Prepared(texts, program, noise, digest, mask)
