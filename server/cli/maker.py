"""What makes the pictures of `img2img generate`: a model in this process, or a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, Protocol

from PIL import Image

from server.cli.jobs import Job
from server.cli.shared import FAILURE, USAGE_ERROR
from server.images.encode import ImageFormat

if TYPE_CHECKING:
    from img2img_client import AsyncClient, ImageToImageError


FILTERED = "the safety check had it blurred"


class Observer(Protocol):
    """Hears how far an image is."""

    previews: bool
    """Whether previews are looked at."""

    def stage(self, words: str) -> None:
        """Hear what begins now."""

    def step(self, done: int, total: int) -> None:
        """Hear how many of the steps that were asked for are done, or were skipped."""

    def preview(self, image: Image.Image) -> None:
        """See a small picture of what comes."""


@dataclass(frozen=True)
class Made:
    """A finished picture; ``remarks`` are lines that the user should see."""

    file: bytes
    seed: int
    remarks: tuple[str, ...] = ()


class NotMade(Exception):
    """Why there is no picture: the ``status`` to exit with, and whether others may fare better."""

    def __init__(self, message: str, status: int, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.hopeless = hopeless


class Maker(Protocol):
    """Makes pictures, several at once if asked to."""

    async def places(self) -> int | None:
        """Return how many pictures it makes at once; None for any number."""

    async def make(self, job: Job, observer: Observer) -> Made:
        """Return the picture. Raises NotMade, or OSError where a file cannot be read."""


def by_server(url: str) -> AbstractAsyncContextManager[Maker]:
    """Make pictures by a running server, with the key of the environment's IMG2IMG_API_KEY.

    Raises NotMade where that cannot be.
    """
    try:
        from img2img_client import AsyncClient
        from img2img_client.client import KEY_VARIABLE
    except ModuleNotFoundError:
        message = (
            "--url needs the Python client, img2img_client: clients/python, or the release's wheel"
        )
        raise NotMade(message, USAGE_ERROR) from None
    try:
        client = AsyncClient(url)
    except ValueError as error:
        # Others are the environment's, of a proxy's address.
        name, _, why = str(error).partition(": ")
        told = {"url": "--url", "key": KEY_VARIABLE}.get(name, name)
        raise NotMade(f"{told}: {why}", USAGE_ERROR) from None

    @asynccontextmanager
    async def opened() -> AsyncIterator[Maker]:
        async with client:
            yield _Remote(client)

    return opened()


class _Remote:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def places(self) -> int | None:
        from img2img_client import AsyncClient, ImageToImageError

        try:
            async with AsyncClient(self._client.url, retries=0) as once:
                return (await once.account()).concurrency
        except ImageToImageError:
            return None  # The first picture meets it too, and says it.

    async def make(self, job: Job, observer: Observer) -> Made:
        from img2img_client import ImageToImageError, Progress

        def retry(error: ImageToImageError, seconds: float) -> None:
            observer.stage(f"{error.message}; again in {seconds:.0f} s")

        def progress(at: Progress) -> None:
            waiting = f"waiting, {at.queue_position} in the queue"
            observer.stage(waiting if at.queue_position else at.stage or "making")
            observer.step(at.step, at.steps)
            if at.preview is not None:
                observer.preview(at.preview)

        fields = {**job.texts, **({"previews": "true"} if observer.previews else {})}
        observer.stage("sending")
        try:
            result = await self._client.image_to_image(
                job.input,
                fields.pop("prompt", ""),
                mask=job.mask,
                progress=progress,
                on_retry=retry,
                format=_FORMATS[job.format],
                **fields,
            )
        except ImageToImageError as error:
            raise NotMade(
                _in_words(error), _exit_status(error), hopeless=_is_hopeless(error)
            ) from None
        remarks = [f"{name} had no effect on this server" for name in result.ignored_fields]
        if result.filtered:
            remarks.append(FILTERED)
        return Made(result.file, result.seed, tuple(remarks))


_FORMATS: dict[ImageFormat, Literal["png", "jpeg", "webp"]] = {
    ImageFormat.PNG: "png",
    ImageFormat.JPEG: "jpeg",
    ImageFormat.WEBP: "webp",
}


def _in_words(error: ImageToImageError) -> str:
    """Return why there is no picture, in the words of who sits at a command line."""
    if not error.status:
        return f"{error.message}; is a server there? `img2img serve` starts one"
    if error.status == HTTPStatus.UNAUTHORIZED:
        told = error.message.partition(": send it in ")[0]  # What follows is for HTTP's clients.
        return f"{told}; the key is read from the environment's IMG2IMG_API_KEY"
    return error.message


def _exit_status(error: ImageToImageError) -> int:
    """Return 2 for what the user gave, 1 for what the server or its credits lack."""
    return USAGE_ERROR if error.status in (400, 401, 403, 404, 405, 413, 415) else FAILURE


def _is_hopeless(error: ImageToImageError) -> bool:
    """Return whether the next picture would fail alike: no server, none of ours, key or credits."""
    return error.status in (0, 401, 402, 403, 404, 405)
