"""Fields of another API's request, from a multipart form or a JSON object alike.

Clients are sloppy: numbers come as texts and texts as numbers, and null or an empty text means left
out. So every value is read as text by the same strict rules as the contract's form.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request
from pydantic import BaseModel

from server.accounts.admission import fingerprint
from server.errors import InvalidInput
from server.http.errors import DeadlineExpired, UnsupportedMedia
from server.http.ignored_fields import IgnoredFields
from server.http.json_body import JsonBody, LongText, read_json
from server.http.multipart import Part, read_form, refuse_encoded_body
from server.http.waiting import TimeLimit
from server.img2img.fields import validated
from server.settings import Settings

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Form:
    """A form's texts and files by name, and what tells it from other requests."""

    texts: dict[str, str]
    files: dict[str, bytes | bytearray]
    fingerprint: str


async def parts_of(
    request: Request,
    limit: TimeLimit,
    *,
    texts: frozenset[str],
    files: frozenset[str],
    keep_first: frozenset[str] = frozenset(),
    bare_files: bool = False,
) -> dict[str, Part]:
    """Return the parts of a multipart form, and name its unknown fields in the response.

    ``keep_first`` and ``bare_files`` are those of `read_form`, whose errors are raised; and
    DeadlineExpired.
    """
    refuse_encoded_body(request.headers.getlist("content-encoding"))
    settings: Settings = request.app.state.settings
    async with _body(request, limit) as stream:
        return await read_form(
            request.headers.get("content-type"),
            stream,
            wanted=texts | files,
            file_fields=files,
            max_file_bytes=settings.max_upload_bytes,
            on_unknown=IgnoredFields.of(request.scope).add,
            keep_first=keep_first,
            bare_files=bare_files,
        )


@asynccontextmanager
async def _body(request: Request, limit: TimeLimit) -> AsyncIterator[AsyncIterator[bytes]]:
    """Give the body's stream, which is closed when it has been read. Raises DeadlineExpired."""
    try:
        async with asyncio.timeout(limit.remaining), aclosing(request.stream()) as stream:
            yield stream
    except TimeoutError:
        raise DeadlineExpired(f"the upload was not complete within {limit.seconds:g} s") from None


async def form_of(
    request: Request,
    limit: TimeLimit,
    *,
    texts: frozenset[str],
    files: frozenset[str],
    keep_first: frozenset[str] = frozenset(),
) -> Form:
    """Return a multipart form, and name its unknown fields in the response.

    Raises InvalidInput for a text that is a file, for a file that is empty, and for either if it
    cannot be read; and what `read_form` does.
    """
    parts = await parts_of(
        request, limit, texts=texts, files=files, keep_first=keep_first, bare_files=True
    )
    mark = await anyio.to_thread.run_sync(fingerprint, parts)
    sent = {name: part for name, part in parts.items() if name in texts or not part.is_left_out}
    told = [(name, _problem(part, name in files)) for name, part in sent.items()]
    if problems := [f"{name}: {problem}" for name, problem in told if problem]:
        raise InvalidInput(problems)
    return Form(
        {name: part.text for name, part in sent.items() if name in texts},
        {name: part.data for name, part in sent.items() if name in files},
        f"{request.url.path} {mark}",
    )


def _problem(part: Part, wanted_as_file: bool) -> str:
    """Return why a part is neither text nor a file as it is wanted, or `""`."""
    if part.is_file and not wanted_as_file:
        return "came as a file; send it as text"
    if wanted_as_file and not part.data:
        return part.problem or "the file is empty"
    return part.problem


async def json_of(request: Request, limit: TimeLimit) -> JsonBody:
    """Return the object in the body, whatever its Content-Type but a form's.

    Raises what `read_json` does, and UnsupportedMedia.
    """
    refuse_encoded_body(request.headers.getlist("content-encoding"))
    sent = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if sent.startswith("multipart/"):
        raise UnsupportedMedia(f"Content-Type is {sent[:100]}; send the fields as application/json")
    async with _body(request, limit) as stream:
        body = await read_json(stream)
    return JsonBody(body.fields, f"{request.url.path} {body.fingerprint}")


def name_ignored(request: Request, names: Iterable[str]) -> None:
    """Name fields without effect in the response's headers."""
    ignored = IgnoredFields.of(request.scope)
    for name in names:
        ignored.add(name.encode("utf-8", "surrogatepass"))


def text_of(value: object) -> str | None:
    """Return a JSON value as the text that a form would have; None where it means left out."""
    if value is None or isinstance(value, dict | list):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def texts_of(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Return the named fields of a JSON object as texts. Raises InvalidInput for other values."""
    problems = []
    for name in names:
        value = fields.get(name)
        if isinstance(value, LongText):
            problems.append(f"{name}: is a text of {len(value.data)} bytes, which no field holds")
        elif isinstance(value, dict | list):
            problems.append(f"{name}: is no text or number")
    if problems:
        raise InvalidInput(problems)
    found = {name: text_of(fields.get(name)) for name in names}
    return {name: text for name, text in found.items() if text is not None}


def parsed(model: type[M], texts: Mapping[str, str]) -> M:
    """Return the model of texts; blank ones count as left out. Raises InvalidInput by field."""
    form, problems = validated(model, texts)
    if form is None:
        raise InvalidInput(problems)
    return form
