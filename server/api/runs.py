"""Runs with an id of their client's: begun with `X-Run-Id`, found again and withdrawn by it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request
from starlette.responses import Response

from pipelines.errors import DeadlineExceeded, GenerationCancelled
from server.accounts.admission import MODEL_HEADER, Admitted
from server.accounts.auth import AnyCaller
from server.api.flow import Answer, Flow
from server.errors import ImageStoreAway, RunWithdrawn, shown
from server.http.envelope import success
from server.http.errors import BadRequest, NotFound
from server.http.response_headers import response_headers
from server.http.waiting import TimeLimit, within
from server.img2img.events import (
    EventStream,
    event,
    progress_events,
    refused_body,
    stream_finished,
    wants_events,
)
from server.img2img.form import failure_responses
from server.img2img.runs import Run, Runs
from server.img2img.service import Batch

RUN_HEADER = "X-Run-Id"
_ID_SCHEMA: dict[str, Any] = {
    "minLength": 16,
    "maxLength": 128,
    "pattern": "^[A-Za-z0-9_-]+$",
}
_SANE_RUN_ID = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)

router = APIRouter(prefix="/api/runs", tags=["runs"])
logger = logging.getLogger(__name__)


async def named_run(
    request: Request,
    admission: Admitted,
    run_id: Annotated[
        str | None,
        Header(
            alias=RUN_HEADER,
            description="A new random id of the client's for a stream of events: the run then "
            "outlives its connection for a while, and is found again at `/api/runs/{id}`. An "
            "addition to the hosted service's headers.",
            json_schema_extra=_ID_SCHEMA,
        ),
    ] = None,
) -> AsyncIterator[Run | None]:
    """Give the run that the client named, None if it named none or waits for no events.

    The request goes on until the run has ended, though its client may have left.
    """
    runs: Runs = request.app.state.runs
    if run_id is None or not runs.grace or not wants_events(request):
        yield None
        return
    limit = TimeLimit.of(request.scope, request.app.state.settings.request_timeout)
    with runs.open(admission.identity, _checked(run_id, RUN_HEADER), limit) as run:
        yield run
        await run.ended()


RunId = Annotated[str, Path(json_schema_extra=_ID_SCHEMA)]
NamedRun = Annotated[Run | None, Depends(named_run)]


def stream_run(
    flow: Flow, run: Run, batch: Batch, answer: Callable[[], Awaitable[bytes]]
) -> Response:
    """Go on with a run by itself, and stream what happens to it.

    ``answer`` awaits the success's body, or raises what the flow has a failure for.
    """
    runs: Runs = flow.request.app.state.runs
    run.headers[MODEL_HEADER] = response_headers(flow.request.scope)[MODEL_HEADER]

    async def work() -> bytes:
        try:
            body = await answer()
            # Keeping it may take long, and who has it may come with the next at once.
            await flow.admission.close()
        except GenerationCancelled:
            run.let_go = True
            return refused_body(await flow.failed(RunWithdrawn()))
        except Exception as error:
            refusal = await flow.failed(error)
            body = refused_body(refusal)
            run.headers.update(refusal.headers)
        finally:
            batch.cancel()
        return body

    async def keep(body: bytes) -> None:
        try:
            await runs.keep(run, Answer(body, headers=run.headers).packed())
        except ImageStoreAway:
            logger.warning(
                "a run is not kept for who comes back: the store of images is away or full"
            )

    run.start(batch, work(), keep)
    return _stream(run)


def _stream(run: Run) -> EventStream:
    return EventStream(run.watch(), _events(run))


async def _events(run: Run) -> AsyncGenerator[bytes]:
    # Past its limit the answer says so.
    with suppress(DeadlineExceeded):
        async for told in progress_events(run.handle, run.limit):
            yield told
    yield event("result", await run.answer())


def _checked(run_id: str, sent_as: str = "run_id") -> str:
    if not _SANE_RUN_ID.fullmatch(run_id):
        raise BadRequest(f"{sent_as}: {shown(run_id)} is not 16 to 128 letters, digits, - or _")
    return run_id


@router.get(
    "/{run_id}",
    summary="Find a run again",
    responses=failure_responses(400, 401, 404, 409, 429, 500, 503, 504),
)
async def found(request: Request, caller: AnyCaller, run_id: RunId) -> Response:
    """Answer as the request that began the run, by its key alone: events, or the envelope.

    404 where there is no such run any more: one that was not finished was not charged.
    """
    runs: Runs = request.app.state.runs
    run = runs.find(caller.identity, _checked(run_id))
    if run is not None:
        response_headers(request.scope).update(run.headers)
        if wants_events(request):
            return _stream(run)
        watch = run.watch()
        try:
            body = await within(request, run.limit, run.answer())
            response_headers(request.scope).update(run.headers)  # A failure's are known by now.
            return _plain(body)
        finally:
            watch.cancel()
    kept = await runs.kept(caller.identity, run_id)
    if kept is None:
        raise NotFound("there is no such run, or not any more")
    request.app.state.byte_budget.check(len(kept))
    answer = Answer.unpacked(kept)
    response_headers(request.scope).update(answer.headers)
    return stream_finished(answer.body) if wants_events(request) else _plain(answer.body)


def _plain(body: bytes) -> Response:
    """Return the envelope with the status that its request would have been answered with."""
    failed = b'"code":-1' in body[:20]
    status = json.loads(body)["status"] if failed else 200
    return Response(body, status, {"Cache-Control": "no-store"}, media_type="application/json")


@router.delete(
    "/{run_id}",
    summary="Withdraw a run",
    responses=failure_responses(400, 401, 429, 503),
)
async def withdraw(request: Request, caller: AnyCaller, run_id: RunId) -> Response:
    """Answer at once with `state`.

    `cancelled`: it ends within a step and is not charged. `finished`: too late, it has ended, and
    is charged if it succeeded; an answer that was kept is let go of. `unknown`: not at this server.
    A withdrawn id is answered 409 from then on.
    """
    runs: Runs = request.app.state.runs
    return success({"state": await runs.withdraw(caller.identity, _checked(run_id))})
