"""The one way from a form's fields to a finished file, for every API and for the command line.

prepare   fields and upload -> checked form and decoded image -> what the engine is asked
run       hand it to the engine
finish    the engine's image -> safety check -> file
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

from pipelines.errors import EngineDead, GenerationFailed
from pipelines.prompt.styles import apply_style
from pipelines.prompt.weights import count_breaks
from pipelines.request import ClipGuidancePreset, GenerationRequest, GenerationResult, Pixels
from server.engine_service import Handle, LoadedModel
from server.errors import ImageError, InvalidInput
from server.http.waiting import TimeLimit
from server.images import parameters_text
from server.images.encode import ImageFormat, encode_image
from server.images.workers.pool import DecoderPool
from server.images.workers.process import Fit
from server.img2img.deny_list import DenyList
from server.img2img.form import IMAGE_FIELD, ImageToImageForm, parse_form
from server.observability.logs import current_request_id
from server.observability.request_record import current_record
from server.settings import Settings

_TIME_TO_SAY_SO = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class Fields:
    """A request as an API has read it: texts by the form's names, and the upload's bytes.

    ``unreadable`` says what is wrong with a field that came, but has no text or no bytes.
    """

    texts: Mapping[str, str]
    upload: bytes | bytearray | None
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A request that the engine has, and the model that it runs on."""

    generation: GenerationRequest
    model: LoadedModel
    handle: Handle

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


class ImageToImage:
    """The service: what it needs beside the model, which may come and go."""

    def __init__(self, settings: Settings, decoders: DecoderPool, deny_list: DenyList) -> None:
        self._decoders = decoders
        self._deny_list = deny_list
        self._max_breaks = settings.max_breaks
        self._auto_sizes = settings.auto_picture_sizes
        self._encoders = anyio.CapacityLimiter(settings.picture_threads)

    async def prepare(
        self,
        fields: Fields,
        model: LoadedModel | None,
        *,
        client: str = "",
        limit: TimeLimit | None = None,
    ) -> GenerationRequest:
        """Return what the engine is asked, with all fields checked and the upload decoded.

        Without a model (it is not loaded yet) call `check_for_model` before `run`. ``client`` takes
        turns with others at the decoders.

        Raises InvalidInput with all that is wrong, DecodeTimeout or DecodersBusy.
        """
        form, problems = parse_form(fields.texts)
        if form is not None:
            problems = await _in_text_thread(partial(self._refusals, form, model))
        # A field that came, but cannot be read, is not also reported as missing.
        problems = [line for line in problems if line.split(":")[0] not in fields.unreadable]
        for name, reason in fields.unreadable.items():
            # The image first, as in the form; then what the form itself says.
            problems.insert(0 if name == IMAGE_FIELD else len(problems), f"{name}: {reason}")
        image: Pixels | None = None
        if fields.upload is not None:
            try:
                image = await self._decode(fields.upload, form, client, limit)
            except ImageError as error:
                problems.insert(0, str(error))
        if problems or form is None or image is None:
            raise InvalidInput(problems)
        # A preview is not checked, so where images are, or may be, none is shown.
        previews = model is not None and model.safety is None
        return _generation_request(form, image, previews=previews)

    def check_for_model(self, generation: GenerationRequest, model: LoadedModel) -> None:
        """Check a request that was prepared before its model was loaded. Raises InvalidInput."""
        if lacking := _lacking(generation.clip_guidance, model):
            raise InvalidInput(lacking)

    async def run(
        self, generation: GenerationRequest, model: LoadedModel, limit: TimeLimit | None = None
    ) -> Running:
        """Hand the request to the engine; withdraw it if the caller is cancelled meanwhile.

        Raises EngineRefused.
        """
        current_record().asked(generation, model.name)

        def submit() -> Running:
            if limit is None:
                return Running(generation, model, model.engine.submit(generation))
            handle = model.engine.submit(generation, timeout=limit.seconds, arrived=limit.arrived)
            return Running(generation, model, handle)

        submission = asyncio.ensure_future(_in_text_thread(submit))
        try:
            return await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(withdraw)
            raise

    async def finish(
        self,
        running: Running,
        pack: Callable[[FinishedImage], T],
        format: ImageFormat = ImageFormat.PNG,
    ) -> T:
        """Wait for the image, check it, write it in ``format``; return what ``pack`` makes of it.

        All but the waiting is done in a thread. Raises any GenerationError, ImageWithheld or
        SafetyCheckHangs.
        """
        result = await running.result()
        return await self._in_encoder_thread(lambda: pack(_finished(result, running, format)))

    def _refusals(self, form: ImageToImageForm, model: LoadedModel | None) -> list[str]:
        """Return a line for each field that is right in itself, but that this server does not take.

        Reading texts takes milliseconds: call it off an event loop.
        """
        lines = []
        for name, text in (("prompt", form.prompt), ("negative_prompt", form.negative_prompt)):
            if (phrase := self._deny_list.find(text)) is not None:
                lines.append(f"{name}: {phrase!r} is not taken by this server")
            if (breaks := count_breaks(text)) > self._max_breaks:
                lines.append(
                    f"{name}: has BREAK {breaks} times, over the {self._max_breaks} it may have"
                )
        if model is not None:
            lines += _lacking(form.clip_guidance_preset, model)
        return lines

    async def _decode(
        self,
        upload: bytes | bytearray,
        form: ImageToImageForm | None,
        client: str,
        limit: TimeLimit | None,
    ) -> Pixels | None:
        """Return the image at the size to make; without a form None, if it is sound."""
        fit = None
        if form is not None:  # Without one, only to report what is wrong beside the rest.
            fit = Fit(form.width, form.height, form.resize_mode, self._auto_sizes)
        # Before the request's own end, which would not say what took so long.
        deadline = None if limit is None else limit.deadline - _TIME_TO_SAY_SO
        return await self._decoders.decode(upload, fit, deadline=deadline, client=client)

    async def _in_encoder_thread(self, work: Callable[[], T]) -> T:
        place = object()
        await self._encoders.acquire_on_behalf_of(place)
        # A task of its own: who waits may leave, but the place is taken until the thread has ended.
        one = anyio.CapacityLimiter(1)
        thread = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=one))

        def ended(_: object) -> None:
            self._encoders.release_on_behalf_of(place)
            if not thread.cancelled():
                thread.exception()  # that nobody may be left to hear of

        thread.add_done_callback(ended)
        await asyncio.wait((thread,))
        return thread.result()


async def _in_text_thread(work: Callable[[], T]) -> T:
    """Do what reads texts off the event loop, and not behind images, which take far longer."""
    return await anyio.to_thread.run_sync(work)


def withdraw(beginning: asyncio.Future[T]) -> None:
    """Cancel the request that was handed to the engine for a caller that is gone, if one was."""
    if beginning.cancelled() or beginning.exception() is not None:
        return
    if isinstance(begun := beginning.result(), Running):
        begun.handle.cancel()


def _lacking(preset: ClipGuidancePreset, model: LoadedModel) -> list[str]:
    if preset is ClipGuidancePreset.NONE or model.clip is not None:
        return []
    return [
        f"clip_guidance_preset: {preset} needs a CLIP model, and this server has none; "
        "NONE is taken"
    ]


def _generation_request(
    form: ImageToImageForm, image: Pixels, *, previews: bool
) -> GenerationRequest:
    """Return the request with its style applied, its sampler and its seed chosen.

    Without ``previews`` none are made, even where the form asks for them.
    """
    styled = apply_style(form.style_preset, form.prompt, form.negative_prompt)
    return GenerationRequest(
        image=image,
        prompt=styled.prompt,
        negative_prompt=styled.negative_prompt,
        image_strength=form.image_strength,
        cfg_scale=form.cfg_scale,
        sampler=form.chosen_sampler,
        steps=form.steps,
        seed=form.chosen_seed(),
        clip_guidance=form.clip_guidance_preset,
        tile=styled.tile,
        previews=form.previews and previews,
        request_id=current_request_id(),
    )


def _finished(result: GenerationResult, running: Running, format: ImageFormat) -> FinishedImage:
    """Check the image and write it with its settings as text. Blocking."""
    model, image, filtered = running.model, result.image, False
    if model.safety is not None:
        image, filtered = model.safety.review(image, running.generation.request_id)
    text = parameters_text.text_chunks(running.generation, model.name, filtered)
    return FinishedImage(encode_image(image, text, format), result.seed, filtered)
