"""A request for images from its arrival to its answer, the same for every API.

limits and key -> model -> body (the API's) -> kept answer -> plan -> credits -> engine -> images ->
charge -> answer (the API's)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response

from server.accounts.access import ANYONE
from server.accounts.admission import IDEMPOTENCY_HEADER, MODEL_HEADER, Admission
from server.accounts.guesses import source_of
from server.accounts.pricing import credits_text
from server.engine_service import EngineHost, LoadedModel
from server.errors import InsufficientCredits
from server.http.bytes_in_flight import release_upload
from server.http.errors import ApiError, Unavailable, logged_api_error
from server.http.response_headers import response_headers
from server.http.waiting import TimeLimit, within
from server.images.encode import QUALITY, ImageFormat
from server.img2img.images_request import ImagesRequest, Plan
from server.img2img.service import (
    Batch,
    FinishedImage,
    ImageToImage,
    Outcome,
    withdraw,
)

_NOT_READY_RETRY_AFTER = 5.0


@dataclass(frozen=True)
class Answer:
    """A success, as it is sent and as it is kept for its Idempotency-Key."""

    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    def packed(self) -> bytes:
        """Return the answer as one string of bytes."""
        head = json.dumps({"type": self.media_type, "headers": dict(self.headers)})
        return head.encode() + b"\n" + self.body

    @classmethod
    def unpacked(cls, kept: bytes) -> Answer:
        """Return the answer that was packed, or one of the contract's as versions before kept it:
        its JSON alone, in one line."""
        head, line_end, body = kept.partition(b"\n")
        if not line_end:
            return cls(kept)
        told = json.loads(head)
        return cls(body, told["type"], told["headers"])

    def response(self) -> Response:
        """Return the response."""
        headers = {"Cache-Control": "no-store", **self.headers}
        return Response(self.body, headers=headers, media_type=self.media_type)


class Flow:
    """One request for images. Make it before the body is read."""

    def __init__(self, request: Request, admission: Admission) -> None:
        """Raises Unavailable where no model is ready: such a server should take no upload."""
        self.request = request
        self.admission = admission
        self.model = model_in_service(request)
        self.limit = TimeLimit.of(request.scope, request.app.state.settings.request_timeout)
        self.service: ImageToImage = request.app.state.service
        has_accounts = request.app.state.accounts is not None
        self._keeps_answer = has_accounts and IDEMPOTENCY_HEADER in request.headers

    async def begin(
        self, asked: ImagesRequest, fingerprint: str, *, keeps_upload: bool = False
    ) -> Batch | Answer:
        """Check what is asked, reserve its price and hand it to the engine.

        The upload is let go of once it is decoded: a caller that awaits this holds it no more,
        unless it ``keeps_upload`` for the answer that is to be made.

        Returns the kept answer if the same request was answered before; ``fingerprint`` tells
        requests apart under one Idempotency-Key. Raises what `server.http.errors` has failures for,
        and ClientDisconnect.
        """
        beginning = self._begin(asked, fingerprint)
        begun = await within(self.request, self.limit, beginning, withdraw)
        if not keeps_upload or not isinstance(begun, Batch):
            release_upload(self.request.scope)
        if isinstance(begun, Batch):
            return begun
        # It costs its sender nothing, so it is not made for one more who may not read it.
        self.request.app.state.byte_budget.check(len(begun))
        return Answer.unpacked(begun)

    async def _begin(self, asked: ImagesRequest, fingerprint: str) -> Batch | bytes:
        # Of one length, whatever a route puts into it: the database's column has no more room.
        mark = hashlib.sha256(fingerprint.encode()).hexdigest()
        if (kept := await self.admission.kept_response(mark)) is not None:
            return kept
        plan = await self.service.plan(
            asked, self.model, client=client_of(self.request, self.admission), limit=self.limit
        )
        return await self.submit(plan)

    async def submit(self, plan: Plan) -> Batch | bytes:
        """Reserve the price of a plan and run it, or return the kept answer."""
        count = len(plan.generations)
        price = plan.price * count
        try:
            kept = await self.admission.reserve(price, count)
        except InsufficientCredits as error:
            if count == 1:
                raise
            raise InsufficientCredits(
                f"not enough credits: these {count} pictures cost {credits_text(price)}, "
                f"{credits_text(error.available)} are left",
                error.available,
            ) from None
        if kept is not None:
            return kept
        return await self.service.run(plan, self.model, self.limit)

    async def finish(
        self, batch: Batch, format: ImageFormat = ImageFormat.PNG, quality: int = QUALITY
    ) -> list[Outcome]:
        """Return what became of each image, withdrawing them if the client leaves meanwhile.

        Raises the first failure where no image came, of those that the client did not withdraw.
        """
        try:
            work = self.service.finish(batch, format, quality, self.limit)
            outcomes = await within(self.request, self.limit, work)
        except BaseException:
            batch.cancel()
            raise
        return checked(batch, outcomes)

    async def finish_streamed(
        self, batch: Batch, format: ImageFormat = ImageFormat.PNG, quality: int = QUALITY
    ) -> list[Outcome]:
        """As `finish`, in a response that has begun: its end is what withdraws the batch."""
        work = self.service.finish(batch, format, quality, self.limit)
        outcomes = await self.limit.apply(work)
        return checked(batch, outcomes)

    async def settle(
        self,
        batch: Batch,
        outcomes: list[Outcome],
        pack: Callable[[list[FinishedImage]], Answer],
        *,
        streamed: bool = False,
        charging: Callable[[], None] | None = None,
    ) -> Answer:
        """Charge for the images that came, and return what ``pack`` makes of them in a thread.

        Packed first: that may wait for a thread for longer than the request may take or its client
        stays (which in a ``streamed`` answer its response sees), and nothing is charged then.
        ``charging`` is called once it is to be charged, and may refuse by what it raises.
        """
        images = finished(outcomes)

        def packed() -> tuple[Answer, bytes]:
            answer = self._named(pack(images))
            return answer, answer.packed() if self._keeps_answer else b""

        packing = self.service.in_thread(packed)
        answer, kept = await (
            self.limit.apply(packing) if streamed else within(self.request, self.limit, packing)
        )
        if charging is not None:
            charging()
        await self._charge(batch, images, kept)
        return answer

    async def settle_streamed(
        self,
        batch: Batch,
        outcomes: list[Outcome],
        pack: Callable[[list[FinishedImage]], Answer],
    ) -> None:
        """As `settle`, where the images are sent one by one: the answer is made only to be kept."""
        images = finished(outcomes)
        kept = b""
        if self._keeps_answer:
            packing = self.service.in_thread(lambda: self._named(pack(images)).packed())
            kept = await self.limit.apply(packing)
        await self._charge(batch, images, kept)

    async def _charge(self, batch: Batch, images: list[FinishedImage], kept: bytes) -> None:
        if images:
            await self.admission.settle(kept, batch.plan.price * len(images), len(images))

    async def failed(self, error: Exception) -> ApiError:
        """Return the failure for a stream that has begun, once nothing is held for it any more:
        a client that asks again at once is not to be refused for its own request."""
        await self.admission.close()
        return logged_api_error(error, self.limit.seconds)

    def name_model(self) -> None:
        """Say which model makes the images in the headers of a response that begins before it."""
        response_headers(self.request.scope)[MODEL_HEADER] = self._model_name

    @property
    def _model_name(self) -> str:
        return quote(self.model.name, safe=" /:@+,()")

    def _named(self, answer: Answer) -> Answer:
        """Return the answer with the model's name, which is kept with it: another may be in service
        when it is sent again."""
        return replace(answer, headers={**answer.headers, MODEL_HEADER: self._model_name})


def checked(batch: Batch, outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes; raise the first failure where no image came. What the client withdrew
    is none: such a request may come to nothing."""
    failures = batch.failures(outcomes)
    if failures and not finished(outcomes):
        raise failures[0]
    return outcomes


def finished(outcomes: list[Outcome]) -> list[FinishedImage]:
    """Return the images among the outcomes."""
    return [outcome for outcome in outcomes if isinstance(outcome, FinishedImage)]


def client_of(request: Request, admission: Admission) -> str:
    """Return the client that takes turns: a key, wherever it is used; without one a network."""
    if admission.identity != ANYONE.identity:
        return admission.identity
    source = source_of(request.client.host if request.client else "")
    return f"{ANYONE.identity} {source.network or source.address}"


def model_in_service(request: Request) -> LoadedModel:
    """Return the model that serves. Raises Unavailable where none does."""
    host: EngineHost = request.app.state.engine_host
    model = host.serving_model
    if model is None:
        raise Unavailable(host.obstacle, _NOT_READY_RETRY_AFTER)
    return model
