"""One image without HTTP, through the same service and the same engine as the server's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from server.engine_service import load_model
from server.errors import ConfigurationError
from server.extras import missing_extras
from server.images.encode import ImageFormat
from server.images.workers.limits import DecoderLimits
from server.images.workers.pool import DecoderPool
from server.img2img.deny_list import DenyList
from server.img2img.service import Fields, FinishedImage, ImageToImage
from server.settings import Settings


class Observer(Protocol):
    """Hears how far an image is."""

    def stage(self, words: str) -> None:
        """Hear what begins now."""

    def step(self, done: int, total: int) -> None:
        """Hear how many of the steps that were asked for are done, or were skipped."""


async def make_image(
    settings: Settings,
    upload: bytes,
    texts: Mapping[str, str],
    format: ImageFormat,
    observer: Observer,
) -> FinishedImage:
    """Return the image that the server would answer with.

    Raises ConfigurationError, StartError and what `server.http.errors` has a failure for.
    """
    if missing := missing_extras(settings):
        raise ConfigurationError("\n".join(missing))
    limits = DecoderLimits(settings.picture_cpu_seconds, settings.picture_memory_mib)
    decoders = DecoderPool(1, limits, spare=False)
    service = ImageToImage(settings, decoders, DenyList.read(settings.prompt_deny_list))
    try:
        plan = await service.prepare(Fields(texts, upload), None)
    finally:
        decoders.close()
    observer.stage(f"loading {settings.model}")
    model = load_model(settings, warm_up=False)
    service.check_for_model(plan, model)
    observer.stage(f"making {plan.first.width} x {plan.first.height} on {model.device}")
    model.engine.start()
    try:
        running = (await service.run(plan, model)).running[0]
        async for progress in running.handle.progress():
            observer.step(progress.step, progress.steps)
        await running.result()
    finally:
        model.engine.drain(0.0)
    observer.stage("writing")
    return await service.finish_one(running, format)
