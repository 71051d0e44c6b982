"""One picture without HTTP, through the same checks and the same engine as the server's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from pipelines.errors import GenerationError
from pipelines.request import GenerationResult
from server.engine_service import Handle, StartError, load_model
from server.errors import DecodersBusy, ImageError, ImageWithheld
from server.extras import missing_extras
from server.images.encode import ImageFormat
from server.images.workers.limits import DecoderLimits
from server.images.workers.pool import DecoderPool
from server.images.workers.process import Fit
from server.img2img.deny_list import DenyList, DenyListError
from server.img2img.finishing import FinishedImage, finish
from server.img2img.form import parse_form
from server.img2img.generation import generation_request, refusals
from server.settings import Settings


class InvalidInput(ValueError):
    """The picture or a field is wrong; the message names each."""


class NoImage(Exception):
    """No picture could be made, through no fault of the input; the message says why."""


class Observer(Protocol):
    """Hears how far a picture is."""

    def stage(self, words: str) -> None:
        """Hear what begins now."""

    def step(self, done: int, total: int) -> None:
        """Hear how many of the U-Net's evaluations are done."""


async def make_image(
    settings: Settings,
    upload: bytes,
    texts: Mapping[str, str],
    form: ImageFormat,
    observer: Observer,
) -> FinishedImage:
    """Return the picture that the server would answer with. Raises InvalidInput or NoImage."""
    fields, problems = parse_form(texts)
    if fields is None:
        raise InvalidInput("\n".join(problems))
    limits = DecoderLimits(settings.picture_cpu_seconds, settings.picture_memory_mib)
    decoders = DecoderPool(1, limits, spare=False)
    fit = Fit(fields.width, fields.height, fields.resize_mode, settings.auto_picture_sizes)
    try:
        picture = await decoders.decode(upload, fit)
    except ImageError as error:
        raise InvalidInput(str(error)) from None
    except DecodersBusy as error:
        raise NoImage(str(error)) from None
    finally:
        decoders.close()
    assert picture is not None
    try:
        deny_list = DenyList.read(settings.prompt_deny_list)
    except DenyListError as error:
        raise InvalidInput(str(error)) from None
    if missing := missing_extras(settings):
        raise InvalidInput("\n".join(missing))
    observer.stage(f"loading {settings.model}")
    try:
        model = load_model(settings, warm_up=False)
    except StartError as error:
        raise NoImage(str(error)) from None
    if problems := refusals(fields, model, deny_list, settings.max_breaks):
        raise InvalidInput("\n".join(problems))
    generation = generation_request(fields, picture)
    observer.stage(f"making {generation.width} x {generation.height} on {model.device}")
    model.engine.start()
    try:
        result = await _result(model.engine.submit(generation), observer)
    except GenerationError as error:
        raise NoImage(str(error)) from None
    finally:
        model.engine.drain(0.0)
    observer.stage("writing")
    try:
        return finish(result, generation, model, form)
    except ImageWithheld as error:
        raise InvalidInput(str(error)) from None


async def _result(handle: Handle, observer: Observer) -> GenerationResult:
    async def watch() -> None:
        async for progress in handle.progress():
            observer.step(progress.step, progress.steps)

    watching = asyncio.create_task(watch())
    try:
        return await handle.result()
    finally:
        await asyncio.wait((watching,), timeout=1.0)
        watching.cancel()
