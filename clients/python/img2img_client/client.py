"""The clients: the same requests, once with threads' waits and once with asyncio's."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, Self

import httpx2

from img2img_client.answers import (
    Account,
    ImageToImageError,
    Progress,
    Result,
    account_of,
    bare_result_of,
    progress_of,
    result_of,
)
from img2img_client.forms import FieldValue, ImageFormat, ImageSource, file_of, texts_of

KEY_VARIABLE = "IMG2IMG_API_KEY"
EVENT_STREAM = "text/event-stream"
MAX_EVENT_BYTES = 256 * 1024 * 1024
"""A picture is one event; more is no picture of an img2img-server."""

_PATH = "api/generate/basic/imageToImage"
_LOST = "the connection was lost before the picture came"

OnProgress = Callable[[Progress], object]
OnRetry = Callable[[ImageToImageError, float], object]


class _Base:
    """What both clients are made of.

    ``key`` is the API key, by default that of the environment's IMG2IMG_API_KEY. What was lost, or
    refused with 429, 502 or 503, is sent again up to ``retries`` times. A refusal with a
    Retry-After says that waiting helps: the server loads its model or is full (503), the key's
    places are taken (429), the first try still runs (409). It is sent again then for ``patience``
    seconds, however often, unless that is more than ``max_wait`` seconds away.
    A connection counts as lost after ``silence`` seconds without a byte.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        retries: int = 3,
        max_wait: float = 120.0,
        patience: float = 600.0,
        silence: float = 60.0,
    ) -> None:
        self.url = _checked_url(url)
        self.retries = retries
        self.max_wait = max_wait
        self.patience = patience
        key = os.environ.get(KEY_VARIABLE, "") if key is None else key
        if not (key.isascii() and key.isprintable()):
            raise ValueError("key: it has characters that are not printable ASCII")
        headers = {"Authorization": key} if key else {}
        timeout = httpx2.Timeout(silence, pool=None)
        self._open({"base_url": self.url, "headers": headers, "timeout": timeout})

    def _open(self, options: dict[str, Any]) -> None:
        """Make the HTTP client."""
        raise NotImplementedError


def _checked_url(url: str) -> str:
    """Return a server's ``url`` with a slash at its end. Raises ValueError where it is none."""
    # Without all that a user and a password may be, in whatever way the rest is wrong.
    shown = re.sub(r"^(\w+://)?.*@", r"\1", url, flags=re.DOTALL)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url: {shown!r} does not start with http:// or https://")
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        why = "its user or password is not percent-encoded" if "@" in url else error
        raise ValueError(f"url: {shown!r}: {why}") from None
    if not parsed.host:
        raise ValueError(f"url: {shown!r} names no host")
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise ValueError(f"url: {shown!r}: the port is not from 1 to 65535")
    if "?" in url or "#" in url:
        raise ValueError(f"url: {shown!r} goes on after the path")
    return url.rstrip("/") + "/"


class _Tries:
    """The tries of one call: what is sent, the same each time, and how long to wait between."""

    def __init__(self, client: _Base, on_retry: OnRetry | None = None) -> None:
        self._client = client
        self._on_retry = on_retry
        self._failed = 0
        self._busy = 0
        self._busy_since: float | None = None
        self._ran = False

    def wait(self, error: Exception) -> float:
        """Return the seconds until the next try. Raises ImageToImageError where there is none."""
        if not isinstance(error, ImageToImageError):
            words = str(error) or type(error).__name__
            shown = httpx2.URL(self._client.url).copy_with(userinfo=b"")
            error = ImageToImageError(f"no answer of {shown}: {words}")
        seconds = error.retry_after
        # What ran until now did not wait, and is not begun without end.
        busy = bool(seconds) and not self._ran
        self._ran = False
        if seconds is not None and busy:
            # Under load the server's word is for the next moment: who has asked often waits longer.
            seconds = max(seconds, min(self._busy, 30.0))
        if seconds is None:
            # With chance in it: clients that were turned away together do not come back together.
            seconds = 2**self._failed * random.uniform(0.5, 1)
        if not error.may_retry or seconds > self._client.max_wait or self._is_over(busy, seconds):
            raise error
        if self._on_retry is not None:
            self._on_retry(error, seconds)
        return seconds

    def _is_over(self, busy: bool, seconds: float) -> bool:
        """Return whether enough was tried, and count this failure if it is one that counts."""
        client = self._client
        if busy and client.retries > 0:
            self._busy += 1
            now = time.monotonic()
            self._busy_since = self._busy_since or now
            return now - self._busy_since + seconds > client.patience
        self._busy, self._busy_since = 0, None
        self._failed += 1
        return self._failed > client.retries


class _Generation(_Tries):
    """The tries of one picture, under one Idempotency-Key."""

    def __init__(
        self,
        client: _Base,
        image: ImageSource,
        prompt: str,
        mask: ImageSource | None,
        progress: OnProgress | None,
        on_retry: OnRetry | None,
        format: ImageFormat,
        idempotency_key: str | None,
        fields: dict[str, FieldValue],
    ) -> None:
        super().__init__(client, on_retry)
        files = {"init_image": ("init_image.png", file_of(image))}
        if mask is not None:
            files["mask"] = ("mask.png", file_of(mask))
        wanted = "application/json;q=0.9" if format == "png" else f"image/{format}"
        self._progress = progress
        self.request: dict[str, Any] = {
            "method": "POST",
            "url": _PATH,
            "data": texts_of({"prompt": prompt, **fields}),
            "files": files,
            "headers": {
                "Accept": f"{EVENT_STREAM}, {wanted}",
                "Idempotency-Key": idempotency_key or uuid.uuid4().hex,
            },
        }

    def take(self, event: httpx2.ServerSentEvent, response: httpx2.Response) -> Result | None:
        """Return the picture if this is its event. Raises ImageToImageError."""
        if event.event == "result":
            return result_of(event.data, response)
        if event.event == "progress":
            self._ran = True
            if self._progress is not None:
                self._progress(progress_of(event.data, response))
        return None

    @staticmethod
    def whole(response: httpx2.Response) -> Result:
        """Return the picture of an answer that is no stream. Raises ImageToImageError."""
        if response.headers.get("Content-Type", "").startswith("image/"):
            return bare_result_of(response)
        return result_of(response.content, response)


def _is_stream(response: httpx2.Response) -> bool:
    return response.headers.get("Content-Type", "").startswith(EVENT_STREAM)


_AGAIN = (httpx2.RequestError, ImageToImageError)


class Client(_Base):
    """A client of one server; it may be used by several threads at once."""

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx2.Client(**options)

    def image_to_image(
        self,
        image: ImageSource,
        prompt: str,
        *,
        mask: ImageSource | None = None,
        progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
        format: ImageFormat = "png",
        idempotency_key: str | None = None,
        **fields: FieldValue,
    ) -> Result:
        """Return the picture that becomes of `image`.

        ``fields`` have the API's names: image_strength, cfg_scale, steps, seed, sampler, ...
        ``mask`` is white where the picture is made anew. ``progress`` hears how far it is,
        ``on_retry`` why it is asked for once more, and in how many seconds.
        All tries have one Idempotency-Key, so that no picture is paid for twice.

        Raises ImageToImageError, OSError where a path cannot be read, and ValueError for an image
        of floating-point numbers, whose white is not known.
        """
        call = _Generation(
            self, image, prompt, mask, progress, on_retry, format, idempotency_key, fields
        )
        while True:
            try:
                with self._http.stream(**call.request) as response:
                    if not _is_stream(response):
                        response.read()
                        return call.whole(response)
                    for event in httpx2.EventSource(response, MAX_EVENT_BYTES):
                        if (result := call.take(event, response)) is not None:
                            return result
                    raise ImageToImageError(_LOST)
            except _AGAIN as error:
                time.sleep(call.wait(error))

    def account(self) -> Account:
        """Return the key's name, credits and limits. Raises ImageToImageError."""
        tries = _Tries(self)
        while True:
            try:
                return account_of(self._http.get("api/account"))
            except _AGAIN as error:
                time.sleep(tries.wait(error))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Base):
    """As `Client`, for asyncio. A task that is cancelled withdraws its request."""

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx2.AsyncClient(**options)

    async def image_to_image(
        self,
        image: ImageSource,
        prompt: str,
        *,
        mask: ImageSource | None = None,
        progress: OnProgress | None = None,
        on_retry: OnRetry | None = None,
        format: ImageFormat = "png",
        idempotency_key: str | None = None,
        **fields: FieldValue,
    ) -> Result:
        """As `Client.image_to_image`."""
        call = await asyncio.to_thread(
            _Generation,
            self, image, prompt, mask, progress, on_retry, format, idempotency_key, fields,
        )  # fmt: skip
        while True:
            try:
                async with self._http.stream(**call.request) as response:
                    if not _is_stream(response):
                        await response.aread()
                        return call.whole(response)
                    async for event in httpx2.EventSource(response, MAX_EVENT_BYTES):
                        if (result := call.take(event, response)) is not None:
                            return result
                    raise ImageToImageError(_LOST)
            except _AGAIN as error:
                await asyncio.sleep(call.wait(error))

    async def account(self) -> Account:
        """As `Client.account`."""
        tries = _Tries(self)
        while True:
            try:
                return account_of(await self._http.get("api/account"))
            except _AGAIN as error:
                await asyncio.sleep(tries.wait(error))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
