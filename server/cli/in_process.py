"""Pictures without HTTP, through the same service and the same engine as the server's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from PIL import Image

from pipelines.request import ClipGuidancePreset
from server.cli.jobs import Job
from server.cli.maker import FILTERED, Made, Maker, NotMade, Observer
from server.cli.shared import FAILURE, USAGE_ERROR
from server.engine_service import LoadedModel, StartError, load_model
from server.errors import ConfigurationError
from server.extras import missing_extras
from server.http.errors import ANSWERED, api_error
from server.images.workers.limits import DecoderLimits
from server.images.workers.pool import DecoderPool
from server.img2img.deny_list import DenyList
from server.img2img.service import Fields, FinishedImage, ImageToImage
from server.settings import Settings


@asynccontextmanager
async def in_this_process(settings: Settings) -> AsyncIterator[Maker]:
    """Make pictures by the model of the settings, which is loaded for the first one.

    Raises NotMade where the settings cannot be used.
    """
    with _told():
        if missing := missing_extras(settings):
            raise ConfigurationError("\n".join(missing))
        deny_list = DenyList.read(settings.prompt_deny_list)
    limits = DecoderLimits(settings.picture_cpu_seconds, settings.picture_memory_mib)
    decoders = DecoderPool(1, limits, spare=False)
    own = _Own(settings, ImageToImage(settings, decoders, deny_list))
    try:
        yield own
    finally:
        decoders.close()
        own.close()


class _Own:
    def __init__(self, settings: Settings, service: ImageToImage) -> None:
        self._settings = settings
        self._service = service
        self._model: LoadedModel | None = None
        self._loading = asyncio.Lock()

    async def places(self) -> int | None:
        return None

    async def make(self, job: Job, observer: Observer) -> Made:
        with _told():
            made = await self._make(job, observer)
        return Made(made.file, made.seed, (FILTERED,) if made.filtered else ())

    async def _make(self, job: Job, observer: Observer) -> FinishedImage:
        previews = {"previews": "true"} if observer.previews else {}
        mask = None if job.mask is None else job.mask.read_bytes()
        fields = Fields({**job.texts, **previews}, job.input.read_bytes(), mask=mask)
        # What is wrong with it is said before the seconds that a model takes to load.
        known = self._model
        plan = await self._service.prepare(fields, known)
        async with self._loading:
            if self._model is None:
                observer.stage(f"loading {self._settings.model}")
                self._model = await _in_thread(self._load)
        model = self._model
        # Once more, if it was without the model: that decides on guidance and previews.
        guided = plan.first.clip_guidance is not ClipGuidancePreset.NONE
        if known is None and (observer.previews or guided):
            plan = await self._service.prepare(fields, model)
        observer.stage(f"making {plan.first.width} x {plan.first.height} on {model.device}")
        running = (await self._service.run(plan, model)).running[0]
        async for progress in running.handle.progress():
            observer.step(progress.step, progress.steps)
            if progress.preview is not None:
                observer.preview(Image.fromarray(progress.preview))
        await running.result()
        observer.stage("writing")
        return await self._service.finish_one(running, job.format)

    def _load(self) -> LoadedModel:
        model = load_model(self._settings, warm_up=False)
        model.engine.start()
        return model

    def close(self) -> None:
        if self._model is not None:
            self._model.engine.drain(0.0)


async def _in_thread(work: Callable[[], LoadedModel]) -> LoadedModel:
    """Return what `work` does, in a thread that nothing waits for where this is cancelled.

    asyncio's own are waited for at its end: Ctrl+C would be heard once the model is loaded.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[LoadedModel] = loop.create_future()

    def tell(model: LoadedModel | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if model is not None:
            done.set_result(model)
        elif error is not None:
            done.set_exception(error)

    def run() -> None:
        model, failure = None, None
        try:
            model = work()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # The loop is closed: nobody wants to know any more.
            loop.call_soon_threadsafe(tell, model, failure)

    threading.Thread(target=run, name="img2img-load", daemon=True).start()
    return await done


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the service raises into NotMade; the words are the exception's own."""
    try:
        yield
    except StartError as error:
        raise NotMade(str(error), FAILURE, hopeless=True) from None
    except ConfigurationError as error:
        raise NotMade(str(error), USAGE_ERROR, hopeless=True) from None
    except ANSWERED as error:
        # The input's fault is what HTTP answers with 4xx.
        faulty = api_error(error).status < 500
        raise NotMade(str(error), USAGE_ERROR if faulty else FAILURE) from None
