"""Images of OpenAI's API that are answered by their address, and fetched by it for a while."""

from __future__ import annotations

import base64
import json
import logging
import secrets
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.flow import Answer
from server.errors import ImageStoreAway
from server.http.envelope import json_bytes
from server.http.errors import NotFound
from server.img2img.image_store import KEEP_SECONDS, ImageStore, signature

FILES = "/v1/images/files"

router = APIRouter(include_in_schema=False)
logger = logging.getLogger(__name__)


@router.get(FILES + "/{name}")
async def file(request: Request, name: str, expires: str = "", signature: str = "") -> Response:
    """Return an image that was answered by its address; the signature is the permission."""
    store: ImageStore = request.app.state.image_store
    ends = int(expires) if expires.isascii() and expires.isdigit() and len(expires) < 16 else 0
    valid = secrets.compare_digest(
        signature.encode(), _signed(await store.secret(), name, ends).encode()
    )
    found = await store.get(name) if valid and ends > time.time() else None
    if found is None:
        raise NotFound("the image is not kept any more, or its address is not whole")
    media_type = f"image/{name.rpartition('.')[2]}"
    return Response(found, media_type=media_type, headers={"Cache-Control": "private, no-store"})


class Addresses:
    """Gives images addresses in the place of base64."""

    def __init__(self, store: ImageStore, secret: bytes, base: str) -> None:
        self._store = store
        self._secret = secret
        self._base = base

    @classmethod
    async def of(cls, request: Request) -> Addresses:
        """Return those of a request. Raises ImageStoreAway."""
        store: ImageStore = request.app.state.image_store
        return cls(store, await store.secret(), str(request.base_url).rstrip("/"))

    async def instead_of_images(self, answer: Answer) -> Answer:
        """Return the answer with `url` for each `b64_json`.

        The images are paid for by now: where the store has gone away meanwhile, or has no room for
        all of them, they are answered themselves.
        """
        body = await anyio.to_thread.run_sync(json.loads, answer.body)
        data = await anyio.to_thread.run_sync(self._named, body)
        try:
            for name, file in data.items():  # One by one: they share the way to the store.
                await self._store.put(name, file)
        except ImageStoreAway:
            with suppress(ImageStoreAway):
                for name in data:  # Nobody will have the address of those that found room.
                    await self._store.drop(name)
            logger.warning("images are answered in base64: their store is away or full")
            return answer
        return replace(answer, body=json_bytes(body))

    def _named(self, body: dict[str, Any]) -> dict[str, bytes]:
        """Write addresses into ``body`` and return the files by their names. Blocking."""
        files = {}
        ends = int(time.time()) + KEEP_SECONDS
        for index, item in enumerate(body["data"]):
            name = f"{uuid.uuid4().hex}.{body['output_format']}"
            files[name] = base64.b64decode(item.pop("b64_json"))
            signed = _signed(self._secret, name, ends)
            url = f"{self._base}{FILES}/{name}?expires={ends}&signature={signed}"
            body["data"][index] = {"url": url, **item}
        return files


_signed = signature
