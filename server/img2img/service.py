"""The one way from what an API asks to finished files, for every API and for the command line.

prepare   the contract's form -> ImagesRequest -> plan
plan      prompts checked, uploads decoded and fitted -> what the engine is asked
run       hand it to the engine
finish    the engine's images -> pasted, resized, safety check -> files
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio

from pipelines.errors import EngineDead, GenerationFailed, TooManyTogether
from pipelines.prompt.weights import count_breaks
from pipelines.request import ClipGuidancePreset, GenerationRequest, GenerationResult, Pixels
from server.engine_service import Handle, LoadedModel
from server.errors import ImageError, InvalidInput
from server.http.waiting import TimeLimit, outcomes_of
from server.images import parameters_text
from server.images.encode import QUALITY, ImageFormat, encode_image
from server.images.workers.pool import DecoderPool
from server.images.workers.process import Fit, OwnSize, Wanted
from server.img2img.deny_list import DenyList
from server.img2img.fitting import FittedImages, canvas, fit_with_mask
from server.img2img.form import IMAGE_FIELD, MASK_FIELD, ImageToImageForm, parse_form
from server.img2img.images_request import (
    MAX_ANSWER_PIXELS,
    Finishing,
    ImagesRequest,
    Plan,
    generations_of,
)
from server.img2img.threads import begin_in_thread, in_text_thread
from server.observability.logs import current_request_id
from server.observability.request_record import current_record
from server.settings import Settings

_TIME_TO_SAY_SO = 0.05
SUBMITTED_AT_ONCE = 40
"""An engine in another process that is frozen answers no submission until it is given up, for up to
half a minute: so many threads wait for that, and none that anything else needs."""

T = TypeVar("T")


@dataclass(frozen=True)
class Fields:
    """A form as an API has read it: texts by the form's names, and the files' bytes.

    ``unreadable`` says what is wrong with a field that came, but has no text or no bytes.
    """

    texts: Mapping[str, str]
    upload: bytes | bytearray | None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    mask: bytes | bytearray | None = None


@dataclass(frozen=True)
class Running:
    """A request that the engine has, and the model that it runs on."""

    generation: GenerationRequest
    model: LoadedModel
    handle: Handle
    finishing: Finishing = field(default_factory=Finishing)

    async def result(self) -> GenerationResult:
        """Return the engine's image. Raises any GenerationError."""
        record = current_record()
        record.timelines.append(self.handle.timeline)
        try:
            result = await self.handle.result()
            record.images += 1
            return result
        except EngineDead as error:
            # One that died with the request in it is a fault of ours, not one to ask again.
            raise GenerationFailed(f"the engine died under a request: {error}") from error


@dataclass(frozen=True)
class FinishedImage:
    """An image as a file; ``filtered`` says that the safety check had it blurred."""

    file: bytes
    seed: int
    filtered: bool = False
    parameters: str = ""
    """The settings as text, as the file has them."""


class Batch:
    """The images of one request that the engine makes."""

    def __init__(self, plan: Plan, running: Sequence[Running]) -> None:
        self.plan = plan
        self.running = tuple(running)
        self.began = time.monotonic()
        self.interrupted = False
        self._withdrawn: set[int] = set()

    def cancel(self) -> None:
        """Withdraw what is not finished."""
        for one in self.running:
            one.handle.cancel()

    def interrupt(self) -> None:
        """Withdraw what is not finished; what is finished will be answered with."""
        self.interrupted = True
        self._withdrawn.update(range(len(self.running)))
        self.cancel()

    def skip(self) -> None:
        """Withdraw the image that is worked on."""
        for index, one in enumerate(self.running):
            # One that was withdrawn a moment ago may not have ended yet.
            if index not in self._withdrawn and not one.handle.done:
                self._withdrawn.add(index)
                one.handle.cancel()
                return

    @property
    def skipping(self) -> bool:
        """Return whether an image was withdrawn, and not all of them, that has not ended yet."""
        ending = (not self.running[index].handle.done for index in self._withdrawn)
        return not self.interrupted and any(ending)

    def failures(self, outcomes: Sequence[Outcome]) -> list[Exception]:
        """Return why images did not come, but for those that their client withdrew."""
        told = enumerate(outcomes)
        return [one for i, one in told if isinstance(one, Exception) and i not in self._withdrawn]


Outcome = FinishedImage | Exception
"""A finished image, or why it is none: a GenerationError, ImageWithheld or SafetyCheckHangs."""


class ImageToImage:
    """The service: what it needs beside the model, which may come and go."""

    def __init__(self, settings: Settings, decoders: DecoderPool, deny_list: DenyList) -> None:
        self._decoders = decoders
        self._deny_list = deny_list
        self._max_breaks = settings.max_breaks
        self._auto_sizes = settings.auto_picture_sizes
        self._encoders = anyio.CapacityLimiter(settings.picture_places)
        self._submitters = anyio.CapacityLimiter(SUBMITTED_AT_ONCE)

    async def prepare(
        self,
        fields: Fields,
        model: LoadedModel | None,
        *,
        client: str = "",
        limit: TimeLimit | None = None,
    ) -> Plan:
        """Return what the engine is asked by the contract's form.

        Raises InvalidInput with all that is wrong, DecodeTimeout or DecodersBusy.
        """
        form, problems = parse_form(fields.texts)
        if form is None:
            form = _form_of_the_rest(fields.texts, problems)
        # A field that came, but cannot be read, is not also reported as missing.
        problems = [line for line in problems if line.split(":")[0] not in fields.unreadable]
        for name, reason in fields.unreadable.items():
            # The image first, as in the form; then what the form itself says.
            problems.insert(0 if name == IMAGE_FIELD else len(problems), f"{name}: {reason}")
        asked = form.images_request(fields.upload or b"", fields.mask)
        if fields.upload is not None:
            return await self.plan(asked, model, client=client, limit=limit, problems=problems)
        problems += await in_text_thread(partial(self._refusals, asked, model))
        if fields.mask is not None:
            try:
                # Only to report what is wrong beside the rest.
                await self._decode(fields.mask, None, client, limit)
            except ImageError as error:
                problems.insert(0, f"{MASK_FIELD}: {error.reason}")
        raise InvalidInput(problems)

    async def plan(
        self,
        asked: ImagesRequest,
        model: LoadedModel | None,
        *,
        client: str = "",
        limit: TimeLimit | None = None,
        problems: Sequence[str] = (),
    ) -> Plan:
        """Return what the engine is asked, with prompts checked and uploads decoded.

        Without a model (it is not loaded yet) guidance is not checked, and there are no previews:
        plan once more with it. ``client`` takes turns with others at the decoders. ``problems``
        were found before, and are reported with what is found here.

        Raises InvalidInput with all that is wrong, DecodeTimeout or DecodersBusy.
        """
        found = await in_text_thread(partial(self._refusals, asked, model))
        found = [*problems, *found]
        try:
            asked, fitted = await self._fitted(asked, client, limit)
        except ImageError as error:
            raise InvalidInput([f"{asked.image_field}: {error.reason}", *found]) from None
        except InvalidInput as error:
            raise InvalidInput([*error.problems, *found]) from None
        if (too_large := _too_large_together(asked, fitted)) is not None:
            found = [too_large, *found]
        if found:
            raise InvalidInput(found)
        # A preview is not checked, so where images are, or may be, none is shown.
        previews = model is not None and model.safety is None
        generations = generations_of(
            asked,
            fitted.image,
            fitted.mask,
            previews=previews,
            request_id=current_request_id(),
        )
        return Plan(generations, fitted.finishing, asked.count_field)

    async def run(self, plan: Plan, model: LoadedModel, limit: TimeLimit | None = None) -> Batch:
        """Hand the images to the engine; withdraw them if the caller is cancelled meanwhile.

        Raises EngineRefused, or InvalidInput for more than fit at any time; then none of them runs.
        """
        for generation in plan.generations:
            current_record().asked(generation, model.name)
        timeout = arrived = None
        if limit is not None:
            arrived = limit.arrived
            # What is late of several is the engine's to end while the others can be answered.
            several = len(plan.generations) > 1
            timeout = limit.made_by - arrived if several else limit.seconds

        def submit() -> Batch:
            running: list[Running] = []
            try:
                for generation in plan.generations:
                    handle = model.engine.submit(generation, timeout=timeout, arrived=arrived)
                    running.append(Running(generation, model, handle, plan.finishing))
            except BaseException as error:
                Batch(plan, running).cancel()
                if isinstance(error, TooManyTogether):
                    raise InvalidInput([_too_many(plan, len(running), error)]) from None
                raise
            return Batch(plan, running)

        submission = await begin_in_thread(submit, self._submitters)
        try:
            return await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(withdraw)
            raise

    async def finish(
        self,
        batch: Batch,
        format: ImageFormat = ImageFormat.PNG,
        quality: int = QUALITY,
        limit: TimeLimit | None = None,
    ) -> list[Outcome]:
        """Wait for the images, check them, write them in ``format``; return what became of each.

        All but the waiting is done in threads. Of several images those that are late are withdrawn
        while there is time to answer with the others.
        """
        finishing = [self.finish_one(one, format, quality) for one in batch.running]
        return await outcomes_of(finishing, limit, batch.cancel)

    async def finish_one(
        self, running: Running, format: ImageFormat = ImageFormat.PNG, quality: int = QUALITY
    ) -> FinishedImage:
        """Wait for one image, check it and write it.

        Raises any GenerationError, ImageWithheld or SafetyCheckHangs.
        """
        result = await running.result()
        return await self.in_thread(lambda: _finished(result, running, format, quality))

    def _refusals(self, asked: ImagesRequest, model: LoadedModel | None) -> list[str]:
        """Return a line for each field that is right in itself, but that this server does not take.

        Reading texts takes milliseconds: call it off an event loop.
        """
        lines = []
        for name, text in (
            ("prompt", asked.prompt),
            ("negative_prompt", asked.negative_prompt),
        ):
            if (phrase := self._deny_list.find(text)) is not None:
                lines.append(f"{name}: {phrase!r} is not taken by this server")
            if (breaks := count_breaks(text)) > self._max_breaks:
                lines.append(
                    f"{name}: has BREAK {breaks} times, over the {self._max_breaks} it may have"
                )
        if model is not None:
            lines += _lacking(asked.clip_guidance, model)
        return lines

    async def _fitted(
        self, asked: ImagesRequest, client: str, limit: TimeLimit | None
    ) -> tuple[ImagesRequest, FittedImages]:
        """Decode the uploads and fit them to the size to make; return what is asked of them too.

        Raises ImageError, or InvalidInput for a mask.
        """
        if asked.upload is None:
            return asked, canvas(asked)
        if not asked.needs_own_size:
            sizes = self._auto_sizes if asked.auto_sizes else ()
            fit = Fit(asked.width, asked.height, asked.resize_mode, sizes)
            image = await self._decode(asked.upload, fit, client, limit)
            assert image is not None
            return asked, FittedImages(image, None, Finishing())
        uploads = {asked.image_field: asked.upload}
        if asked.mask is not None and asked.mask.upload is not None:
            uploads[asked.mask.field] = asked.mask.upload
        images: dict[str, Pixels] = {}
        problems: list[str] = []
        for name, upload in uploads.items():
            try:
                shrinks = name != asked.image_field or not asked.answers_own_size
                image = await self._decode(upload, OwnSize(shrinks=shrinks), client, limit)
            except ImageError as error:
                problems.append(f"{name}: {error.reason}")
            else:
                assert image is not None
                images[name] = image
        if problems:
            raise InvalidInput(problems)
        own = images[asked.image_field]
        asked = asked.seen(own)
        mask = None if asked.mask is None else images.get(asked.mask.field, own)
        sizes = self._auto_sizes if asked.auto_sizes else ()
        return asked, await self.in_thread(partial(fit_with_mask, asked, own, mask, sizes))

    async def _decode(
        self, upload: bytes | bytearray, wanted: Wanted, client: str, limit: TimeLimit | None
    ) -> Pixels | None:
        # Before the request's own end, which would not say what took so long.
        deadline = None if limit is None else limit.deadline - _TIME_TO_SAY_SO
        return await self._decoders.decode(upload, wanted, deadline=deadline, client=client)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do work on images in one of the few threads for it."""
        thread = await begin_in_thread(work, self._encoders)
        await asyncio.wait((thread,))
        return thread.result()


def withdraw(beginning: asyncio.Future[T]) -> None:
    """Cancel the request that was handed to the engine for a caller that is gone, if one was."""
    if beginning.cancelled() or beginning.exception() is not None:
        return
    if isinstance(begun := beginning.result(), Batch):
        begun.cancel()


def _form_of_the_rest(texts: Mapping[str, str], problems: Sequence[str]) -> ImageToImageForm:
    """Return the form without its bad fields, so that the rest can be looked at all the same."""
    bad = {line.split(":")[0] for line in problems}
    sound = {name: text for name, text in texts.items() if name not in bad}
    form, _ = parse_form({"prompt": "-", **sound})
    assert form is not None
    return form


def _too_large_together(asked: ImagesRequest, fitted: FittedImages) -> str | None:
    """Return why so many images of that size are not taken, if they are not."""
    width, height = fitted.answered
    if asked.count == 1 or asked.count * width * height <= MAX_ANSWER_PIXELS:
        return None
    most = max(1, MAX_ANSWER_PIXELS // (width * height))
    return (
        f"{asked.count_field}: {asked.count} images of {width} x {height} are over the "
        f"{MAX_ANSWER_PIXELS} pixels that they may have together; {most} of that size are taken"
    )


def _too_many(plan: Plan, taken: int, error: TooManyTogether) -> str:
    count = len(plan.generations)
    return (
        f"{plan.count_field}: {count} images are too many here: {error}; at most {taken} at a time"
    )


def _lacking(preset: ClipGuidancePreset, model: LoadedModel) -> list[str]:
    if preset is ClipGuidancePreset.NONE or model.clip is not None:
        return []
    return [
        f"clip_guidance_preset: {preset} needs a CLIP model, and this server has none; "
        "NONE is taken"
    ]


def _finished(
    result: GenerationResult, running: Running, format: ImageFormat, quality: int
) -> FinishedImage:
    """Check the image and write it with its settings as text. Blocking."""
    model, filtered = running.model, False
    image = running.finishing.apply(result.image)
    if model.safety is not None:
        image, filtered = model.safety.review(image, running.generation.request_id)
    text = parameters_text.text_chunks(
        running.generation, model.name, filtered, running.finishing.size
    )
    file = encode_image(image, text, format, quality)
    return FinishedImage(file, result.seed, filtered, text[parameters_text.KEY])
