"""What comes back: progress, a picture, or why there is none."""

from __future__ import annotations

import base64
import email.utils
import io
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import httpx2
from PIL import Image

_BUSY = frozenset((429, 502, 503))
_FIELDS = re.compile(r"([a-z_]+(?:, [a-z_]+)*): (.*)", re.DOTALL)
_NEXT_FIELD = re.compile(r"; (?=[a-z_]+(?:, [a-z_]+)*: )")


class ImageToImageError(Exception):
    """Why there is no picture.

    ``status`` is HTTP's, 0 where no answer came; ``fields`` the complaints by the fields' names;
    ``retry_after`` the seconds that the server asks to wait, None where it does not say.
    """

    def __init__(
        self,
        message: str,
        status: int = 0,
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after = retry_after
        self.request_id = request_id
        self.fields = _fields_of(message)

    @property
    def may_retry(self) -> bool:
        """Whether the same request may succeed when it is sent again later."""
        if self.status == 409:  # The first try of this Idempotency-Key may still be running.
            return self.retry_after is not None
        return self.status == 0 or self.status in _BUSY


@dataclass(frozen=True)
class Progress:
    """How far a picture is.

    ``step`` of ``steps`` are done or were skipped; ``evaluation`` of ``evaluations`` is the measure
    of time; ``queue_position`` counts from 1 and is 0 once the request is worked on. ``stage`` and
    ``seconds_left`` are blank and None where the server does not tell them; ``preview`` is a small
    picture of what comes, with the field ``previews=True``.
    """

    step: int
    steps: int
    evaluation: int = 0
    evaluations: int = 0
    queue_position: int = 0
    stage: str = ""
    seconds_left: float | None = None
    preview: Image.Image | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Credits:
    """Credits that a picture cost, and what the key has left."""

    charged: Decimal
    remaining: Decimal


@dataclass(frozen=True, eq=False)
class Result:
    """A picture. ``file`` has its settings as text, as A1111's tools read them."""

    image: Image.Image
    file: bytes
    seed: int
    filtered: bool = False
    """The server's safety check had it blurred."""
    ignored_fields: tuple[str, ...] = ()
    """Fields of the request that had no effect."""
    credits: Credits | None = None
    """None where the server charges nothing."""
    model: str = ""
    replayed: bool = False
    """It was made, and charged, for an earlier try."""


@dataclass(frozen=True)
class Account:
    """A key's name, credits and limits; None where there is none."""

    name: str
    balance: Decimal | None
    reserved: Decimal | None
    rate: str | None
    concurrency: int | None


def progress_of(data: str, response: httpx2.Response) -> Progress:
    """Return what a `progress` event says; fields that are unknown here are passed over.

    Raises ImageToImageError.
    """
    with _understood(response):
        said = json.loads(data)
        known = {name: said[name] for name in Progress.__dataclass_fields__ if name in said}
        if preview := known.get("preview"):
            known["preview"] = _image(base64.b64decode(preview))
        return Progress(**known)


def result_of(body: str | bytes, response: httpx2.Response) -> Result:
    """Return the picture of an envelope. Raises ImageToImageError."""
    with _understood(response):
        answer = _envelope(body, response)
        data, credits = answer["data"], answer.get("credits")
        filtered = data.get("filtered", False)
        return _result(base64.b64decode(data["image"]), data["seed"], filtered, credits, response)


def bare_result_of(response: httpx2.Response) -> Result:
    """Return the picture of an answer that is the picture alone. Raises ImageToImageError."""
    with _understood(response):
        headers = response.headers
        filtered = headers.get("X-Filtered") == "true"
        return _result(response.content, headers.get("Seed", 0), filtered, None, response)


def _result(
    file: bytes,
    seed: int | str,
    filtered: bool,
    credits: Mapping[str, str] | None,
    response: httpx2.Response,
) -> Result:
    headers = response.headers
    return Result(
        image=_image(file),
        file=file,
        seed=int(seed),
        filtered=filtered,
        ignored_fields=_names(headers.get("X-Ignored-Fields", "")),
        credits=_credits(credits, headers),
        model=unquote(headers.get("X-Model", "")),
        replayed=headers.get("Idempotency-Replayed") == "true",
    )


def account_of(response: httpx2.Response) -> Account:
    """Return what the key has and may. Raises ImageToImageError."""
    with _understood(response):
        data = _envelope(response.content, response)["data"]
        credits, limits = data["credits"] or {}, data["limits"]
        return Account(
            name=data["name"],
            balance=Decimal(credits["balance"]) if credits else None,
            reserved=Decimal(credits["reserved"]) if credits else None,
            rate=limits["rate"],
            concurrency=limits["concurrency"],
        )


@contextmanager
def _understood(response: httpx2.Response) -> Iterator[None]:
    """Raise ImageToImageError for whatever is wrong with what an answer says."""
    try:
        yield
    except ImageToImageError:
        raise
    except Exception as error:  # Of pictures Pillow raises anything.
        status = _status(response)
        message = f"the answer is none of an img2img-server's: HTTP {status}"
        raise _failure(message, status, response) from error


def _envelope(body: str | bytes, response: httpx2.Response) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(body)
    if answer["code"] == 0:
        return answer
    # In a stream that began well the failure's own status is in its event, its Retry-After too.
    status = int(answer.get("status", _status(response)))
    raise _failure(str(answer["message"]), status, response, answer.get("retry_after"))


def _status(response: httpx2.Response) -> int:
    # A server may be set to answer failures with 200, for clients that read `code` alone.
    said = response.headers.get("X-Status", "")
    return int(said) if re.fullmatch("[0-9]{3}", said) else response.status_code


def _failure(
    message: str, status: int, response: httpx2.Response, seconds: float | None = None
) -> ImageToImageError:
    headers = response.headers
    retry_after = _retry_after(headers.get("Retry-After", "") if seconds is None else str(seconds))
    return ImageToImageError(message, status, retry_after, headers.get("X-Request-Id", ""))


def _image(file: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def _credits(told: Mapping[str, str] | None, headers: Mapping[str, str]) -> Credits | None:
    """Return what a stream tells in its last event, and other answers in headers."""
    if told is not None:
        return Credits(Decimal(told["charged"]), Decimal(told["remaining"]))
    if "X-Credits-Charged" not in headers:
        return None
    return Credits(Decimal(headers["X-Credits-Charged"]), Decimal(headers["X-Credits-Remaining"]))


def _names(header: str) -> tuple[str, ...]:
    return tuple(unquote(name) for name in header.split(", ") if name)


def _retry_after(header: str) -> float | None:
    """Return the seconds of a Retry-After, which may be a date too."""
    try:
        return max(0.0, float(header))
    except ValueError:
        date = email.utils.parsedate_tz(header)
    try:
        return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
    except (ValueError, OverflowError):  # No calendar has such a day.
        return None


def _fields_of(message: str) -> dict[str, str]:
    """Return `{"steps": "5 is not in 10..50"}` of `steps: 5 is not in 10..50; ...`."""
    found = (_FIELDS.fullmatch(part) for part in _NEXT_FIELD.split(message))
    return {name: part[2] for part in found if part for name in part[1].split(", ")}
