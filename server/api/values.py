"""Fields of another API's request, from a multipart form or a JSON object alike.

Clients are sloppy: numbers come as texts and texts as numbers, and null or an empty text means left
out. So every value is read as text by the same strict rules as the contract's form.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

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
V = TypeVar("V")


@dataclass(frozen=True)
class Form:
    """A form's texts and files by name, and what tells it from other requests.

    ``unreadable`` says why a field that came is neither, ``paths`` where in a JSON body a file was.
    """

    texts: dict[str, str]
    files: dict[str, bytes | bytearray]
    fingerprint: str
    unreadable: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)

    def without(self, request: Request, *ignored: str) -> Form:
        """Return the form without fields that have no effect, which the response names.

        Do so before `parsed`: what has no effect is not looked at, and never refused.
        """
        name_ignored(request, [name for name in ignored if self.has(name)])

        def left(sent: dict[str, V]) -> dict[str, V]:
            return {name: value for name, value in sent.items() if name not in ignored}

        return replace(
            self,
            texts=left(self.texts),
            files=left(self.files),
            unreadable=left(self.unreadable),
        )

    def has(self, name: str) -> bool:
        """Return whether a field came with something in it."""
        return bool(self.text(name)) or name in self.files or name in self.unreadable

    def text(self, name: str) -> str:
        """Return a text without the blanks around it, `""` where there is none."""
        return self.texts.get(name, "").strip()


class Problems:
    """Gathers what is wrong with a request, so that all of it is said at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Go on after a block that raises InvalidInput; what it says of a field that another block
        has spoken of is left out."""
        named = {line.split(":")[0] for line in self._lines}
        try:
            yield
        except InvalidInput as error:
            self._lines += [line for line in error.problems if line.split(":")[0] not in named]

    def check(self) -> None:
        """Raise InvalidInput if there was any: only then what the blocks were to find is there."""
        if self._lines:
            raise InvalidInput(self._lines)


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

    A text that is a file, a file that is empty, and either if it cannot be read is unreadable.
    Raises what `read_form` does.
    """
    parts = await parts_of(
        request, limit, texts=texts, files=files, keep_first=keep_first, bare_files=True
    )
    mark = await anyio.to_thread.run_sync(fingerprint, parts)
    sent = {name: part for name, part in parts.items() if name in texts or not part.is_left_out}
    told = {name: _problem(part, name in files) for name, part in sent.items()}
    sound = {name: part for name, part in sent.items() if not told[name]}
    return Form(
        {name: part.text for name, part in sound.items() if name in texts},
        {name: part.data for name, part in sound.items() if name in files},
        f"{request.url.path} {mark}",
        {name: problem for name, problem in told.items() if problem},
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


def form_of_json(body: JsonBody, names: Container[str]) -> Form:
    """Return the named fields of a JSON object; those that are no texts are unreadable."""
    texts: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for name, value in body.fields.items():
        if name not in names:
            continue
        if isinstance(value, LongText):
            unreadable[name] = f"is a text of {len(value.data)} bytes, which no field holds"
        elif isinstance(value, dict | list):
            unreadable[name] = "is no text or number"
        elif (text := text_of(value)) is not None:
            texts[name] = text
    return Form(texts, {}, body.fingerprint, unreadable)


def parsed(model: type[M], form: Form) -> M:
    """Return the model of a form's texts; blank ones count as left out.

    Raises InvalidInput by field, for those too that are unreadable.
    """
    found, problems = validated(model, form.texts)
    # A field that came, but cannot be read, is not also reported as missing.
    problems = [line for line in problems if line.split(":")[0] not in form.unreadable]
    problems = [*(f"{name}: {why}" for name, why in form.unreadable.items()), *problems]
    if found is None or problems:
        raise InvalidInput(problems)
    return found
