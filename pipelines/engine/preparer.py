"""Draws noise and compiles sampler programs beside the engine's thread, in the order of arrival."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from models.bundle import ModelBundle
from pipelines.engine.job import Job
from pipelines.engine.watch import Watch
from pipelines.samplers.programs import make_program
from pipelines.samplers.schedules import NoiseSchedule
from pipelines.vae.encode import image_digest
from pipelines.vae.noise import RequestNoise

logger = logging.getLogger(__name__)


class Preparer:
    """One thread; a daemon, so that one that hangs does not keep the process.

    ``done`` is called in that thread with each job, and the error if there was one.
    """

    def __init__(
        self, bundle: ModelBundle, watch: Watch, done: Callable[[Job, Exception | None], None]
    ) -> None:
        self._bundle = bundle
        self._noise_schedule = NoiseSchedule.from_config(bundle.scheduler_config)
        self._watch = watch
        self._done = done
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="img2img-prepare", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Prepare ``job`` when those before it are; never blocks."""
        self._inbox.put(job)

    def close(self, timeout: float) -> None:
        """End after what waits, or leave the thread to itself after ``timeout`` seconds."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._inbox.get()) is not None:
            if job.handle.done:
                continue  # the engine has ended meanwhile
            started = time.monotonic()
            try:
                with self._watch.unit():
                    self._prepare(job)
            except Exception as error:
                logger.exception("request %s could not be prepared", job.request.request_id)
                self._done(job, error)
                continue
            job.spend("prepare", time.monotonic() - started)
            self._done(job, None)

    def _prepare(self, job: Job) -> None:
        request = job.request
        job.program = make_program(
            request.sampler, request.steps, request.image_strength, self._noise_schedule
        )
        shape = (self._bundle.latent_channels, job.key.height, job.key.width)
        noise = RequestNoise.draw(request.seed, shape, job.program.draws)
        job.noise = noise.for_device(self._bundle.device)
        # Here and not at the encode: it takes milliseconds of a large picture.
        job.digest = image_digest(request.image)
