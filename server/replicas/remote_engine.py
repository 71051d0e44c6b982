"""An engine that others run: `server.engine_service.RunningEngine` over replicas elsewhere.

The application does not notice: key, limits, decoding, credits and files are the front's own, and
only a request for the device goes to a replica. One that is lost under a request (killed, frozen,
stopping) has it done by another, with the same seed, and the ledger hears of the image alone.

No ray here: `Replicas` says what is needed of a transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from pipelines.engine.statistics import EngineSnapshot, EngineStatistics
from pipelines.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineDead,
    EngineDraining,
    EngineRefused,
    EngineStalled,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    TooManyTogether,
    as_failure,
)
from pipelines.handle import GenerationHandle
from pipelines.request import GenerationRequest, GenerationResult, Pixels, Progress
from pipelines.samplers.programs import evaluation_count
from pipelines.scheduler.batching import guidance_rows
from pipelines.scheduler.cost_model import SizeCost
from server.replicas.balance import Balance, Prices
from server.replicas.events import Accepted, Call, Event, Failed, Lost, Waited

logger = logging.getLogger(__name__)

ATTEMPTS = 4
"""Replicas that a request is given to, one after the other, before it fails."""
RESTART_SECONDS = 60.0
"""How long a request that was taken on waits for a replica where all are lost."""
LOOK_SECONDS = 0.25
"""Between two looks at which replicas are lost."""
_LATE_SECONDS = 5.0
"""After a request's deadline, which its replica keeps; then the front gives it up itself."""


class ReplicaLost(Exception):
    """The replica is gone, or can no longer be reached; the message is fit for the log."""


class NoReplica(Exception):
    """There is none that a call could be given to."""


class Stream(Protocol):
    """The events of a call. Raises ReplicaLost or NoReplica."""

    def __aiter__(self) -> AsyncGenerator[Event]: ...

    def cancel(self) -> None:
        """Withdraw the call; without this an abandoned one runs to its end."""


class Replicas(Protocol):
    """The replicas of an engine, and a way to them."""

    @property
    def balance(self) -> Balance: ...

    def call(self, call: Call, seconds: float, avoid: Collection[str]) -> Stream:
        """Give a call of about ``seconds`` to the replica that `balance` chooses."""

    def watch(self, ident: str) -> None:
        """Ask for all progress of a call from now on."""

    def close(self) -> None:
        """Leave them."""


class RemoteHandle(GenerationHandle):
    """A request at some replica. Progress travels once somebody asks for it."""

    def __init__(self, request: GenerationRequest, engine: RemoteEngine) -> None:
        super().__init__(request)
        self._engine = engine
        self.attempt = ""
        self.watched = request.previews
        self.stopping: asyncio.Future[str] = engine.loop.create_future()
        """Done when its present attempt is to end: with why its replica is lost, or blank."""

    def progress(self) -> AsyncIterator[Progress]:
        self._watch()
        return super().progress()

    @property
    def latest(self) -> Progress | None:
        self._watch()
        return super().latest

    def cancel(self) -> None:
        super().cancel()
        self._engine.call_soon(self.stop, "")

    def stop(self, reason: str) -> None:
        """End the present attempt. On the engine's loop."""
        if not self.stopping.done():
            self.stopping.set_result(reason)

    def _watch(self) -> None:
        if not self.watched and not self.done:
            self.watched = True
            self._engine.call_soon(self._engine.watch, self)


class RemoteEngine:
    """Hands requests to ``replicas``. Thread-safe; its own thread runs the loop that calls them.

    ``costs`` is what images of some sizes took there when it began.
    """

    def __init__(
        self,
        replicas: Replicas,
        loop: asyncio.AbstractEventLoop,
        costs: Sequence[SizeCost] = (),
    ) -> None:
        self.loop = loop
        self._replicas = replicas
        self._costs = costs
        self._prices = Prices()
        self._handles: set[RemoteHandle] = set()  # of the loop
        self._statistics = EngineStatistics()  # of the loop
        self._draining = threading.Event()
        self._ended = threading.Event()
        self._looking: Future[None] | None = None

    # From any thread

    def start(self) -> None:
        """Begin to look after the replicas."""
        self._looking = asyncio.run_coroutine_threadsafe(self._look(), self.loop)

    @property
    def ready(self) -> bool:
        return not self._draining.is_set() and self.obstacle is None

    @property
    def alive(self) -> bool:
        """Return True until it has drained: replicas that are lost come back by themselves."""
        return not self._ended.is_set()

    @property
    def obstacle(self) -> str | None:
        return None if self._replicas.balance.usable else "no replica of the engine is running"

    def snapshot(self) -> EngineSnapshot:
        """Return the load of all replicas, and what this front had done by them."""
        load = self._replicas.balance.load
        return EngineSnapshot(load.running, load.waiting, load.backlog_seconds, self._statistics)

    def costs_by_size(self) -> Sequence[SizeCost]:
        """Return what images of some sizes took at a replica when this front began."""
        return self._costs

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
        *,
        taken: bool = False,
    ) -> RemoteHandle:
        """Give a request to a replica, and return once one has taken it.

        As `pipelines.engine.engine.Engine.submit`; call it off an event loop. Raises EngineRefused.
        """
        del taken  # that is between a front and its replicas
        self._check_state()
        accepted: Future[RemoteHandle] = Future()
        began = time.monotonic()
        running = asyncio.run_coroutine_threadsafe(
            self._run(request, timeout, began if arrived is None else arrived, accepted), self.loop
        )
        running.add_done_callback(lambda one: _never_taken(one, accepted))
        return accepted.result()

    def _check_state(self) -> None:
        if self._draining.is_set():
            raise EngineDraining("the server is shutting down", retry_after=5.0)
        if (obstacle := self.obstacle) is not None:
            raise EngineStalled(obstacle, retry_after=5.0)

    def call_soon(self, what: object, *args: object) -> None:
        """Have the loop call something, unless the engine has ended."""
        if not self._ended.is_set():
            self.loop.call_soon_threadsafe(what, *args)  # type: ignore[arg-type]

    def drain(self, grace: float) -> None:
        """Refuse new work, let what runs finish within ``grace`` seconds, then leave."""
        self._draining.set()
        give_up = time.monotonic() + grace
        while self._handles and time.monotonic() < give_up:
            time.sleep(0.02)
        if not self._ended.is_set():
            try:
                asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(10.0)
            finally:
                self._ended.set()
                self._replicas.close()

    # On the loop

    def watch(self, handle: RemoteHandle) -> None:
        """Ask for a request's progress where it is now."""
        if handle.attempt:
            self._replicas.watch(handle.attempt)

    async def _end(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for handle in list(self._handles):
            handle.fail(EngineDraining("the server is shutting down", retry_after=5.0))
            handle.stop("")
        while self._handles:
            await asyncio.sleep(0.01)

    async def _look(self) -> None:
        """End the attempts on replicas that are lost, so that others take their place."""
        balance = self._replicas.balance
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if (lost := balance.lost()) and balance.usable:
                for handle in list(self._handles):
                    replica = balance.replica_of(handle.attempt)
                    if replica in lost:
                        handle.stop(f"{replica}: {lost[replica]}")

    async def _run(
        self,
        request: GenerationRequest,
        timeout: float | None,
        arrived: float,
        taken: Future[RemoteHandle],
    ) -> None:
        handle = RemoteHandle(request, self)
        self._handles.add(handle)
        late = None if timeout is None else arrived + timeout + _LATE_SECONDS - time.monotonic()
        outcome: GenerationResult | GenerationError
        try:
            async with asyncio.timeout(late):
                outcome = await self._attempts(handle, timeout, arrived, taken)
        except TimeoutError:
            outcome = DeadlineExceeded(f"no image within {timeout:g} s, and no word of it")
        except GenerationError as error:
            outcome = error
        except Exception as error:
            logger.exception("request %s could not be handed on", request.request_id)
            outcome = as_failure(error)
        finally:
            self._handles.discard(handle)
        if isinstance(outcome, EngineRefused) and not taken.done():
            taken.set_exception(outcome)
            return
        if request.strength < 1.0:  # else no image is made, and an engine counts none
            self._statistics.count_end(outcome, handle.timeline)
        self._statistics.evaluations += handle.timeline.evaluations
        if isinstance(outcome, GenerationResult):
            handle.succeed(outcome)
        else:
            handle.fail(outcome)
        if not taken.done():
            taken.set_result(handle)

    async def _attempts(
        self,
        handle: RemoteHandle,
        timeout: float | None,
        arrived: float,
        taken: Future[RemoteHandle],
    ) -> GenerationResult:
        """Have one replica after the other try it. Raises a GenerationError."""
        avoid: list[str] = []
        refusals: list[EngineRefused] = []
        for _ in range(ATTEMPTS):
            if taken.done():
                await self._until_usable(handle)
            if handle.done:  # the drain has answered it: no replica is to begin with it
                raise EngineDraining("the server is shutting down", retry_after=5.0)
            handle.attempt = uuid.uuid4().hex
            handle.stopping = self.loop.create_future()
            if handle.cancelled:
                raise GenerationCancelled("the caller withdrew the request")
            waited = Waited(timeout, time.monotonic() - arrived, taken.done())
            try:
                return await self._attempt(handle, waited, avoid, taken)
            except ReplicaLost as error:
                fields = {"request_id": handle.request.request_id, "reason": str(error)}
                logger.warning("replica lost, another takes its request", extra={"fields": fields})
            except (EngineBusy, EngineDraining, EngineDead, EngineStalled) as refusal:
                refusals.append(refusal)
            except NoReplica as error:
                if not taken.done():
                    refusals.append(EngineStalled(str(error), retry_after=5.0))
            finally:
                replica = self._replicas.balance.replica_of(handle.attempt)
                self._replicas.balance.ended(handle.attempt)
            if replica is not None:
                avoid.append(replica)
            if refusals and self._replicas.balance.owed().keys() <= set(avoid):
                break  # nobody is left who has not been asked
        if taken.done() and not refusals:
            raise GenerationFailed("the replicas that made it were lost, one after the other")
        if not refusals:
            raise EngineStalled("no replica could take the request", retry_after=5.0)
        first = min(refusals, key=lambda one: (isinstance(one, TooManyTogether), one.retry_after))
        if isinstance(first, TooManyTogether) and len(set(avoid)) < self._replicas.balance.most:
            # What is too much for all of them is so for good; else one may take it later.
            raise EngineBusy(str(first), retry_after=first.retry_after)
        raise first

    async def _until_usable(self, handle: RemoteHandle) -> None:
        """Wait for a replica, for as long as one takes to be started anew: what was taken on is not
        to fail for that. Raises EngineStalled where none comes."""
        give_up = time.monotonic() + RESTART_SECONDS
        while not (self._replicas.balance.usable or handle.cancelled or handle.done):
            if time.monotonic() > give_up:
                raise EngineStalled("every replica was lost, and none came back", retry_after=5.0)
            await asyncio.sleep(LOOK_SECONDS)

    async def _attempt(
        self,
        handle: RemoteHandle,
        waited: Waited,
        avoid: Collection[str],
        taken: Future[RemoteHandle],
    ) -> GenerationResult:
        """Have one replica make it. Raises ReplicaLost, NoReplica or a GenerationError."""
        work = work_of(handle.request)
        began = time.monotonic()
        call = Call(handle.attempt, handle.request, waited, handle.watched)
        stream = self._replicas.call(call, self._prices.guess(*work), avoid)
        events = stream.__aiter__()
        coming: asyncio.Task[Event] | None = None
        preview: Pixels | None = None  # the last that has come: it does not come again
        try:
            while True:
                coming = asyncio.ensure_future(_next(events))
                await asyncio.wait((coming, handle.stopping), return_when=asyncio.FIRST_COMPLETED)
                if handle.stopping.done():
                    reason = handle.stopping.result()
                    if reason:
                        raise ReplicaLost(reason)
                    raise GenerationCancelled("the caller withdrew the request")
                event = coming.result()
                if isinstance(event, Accepted):
                    self._prices.learn(*work, event.seconds)
                    self._replicas.balance.weighed(handle.attempt, event.seconds)
                    if not taken.done():
                        taken.set_result(handle)
                elif isinstance(event, Progress):
                    preview = preview if event.preview is None else event.preview
                    handle.publish(replace(event, preview=preview))
                elif isinstance(event, Lost):
                    raise ReplicaLost(event.reason)
                elif isinstance(event, Failed):
                    raise event.error
                else:
                    event.stages.write_to(handle.timeline, began)
                    return event.result
        finally:
            stream.cancel()
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.wait((coming,), timeout=0.1)
            if coming is not None and coming.done() and not coming.cancelled():
                coming.exception()  # that nobody else hears of
            with contextlib.suppress(RuntimeError):  # what was cancelled has not ended yet
                await events.aclose()


async def _next(events: AsyncIterator[Event]) -> Event:
    try:
        return await anext(events)
    except StopAsyncIteration:
        raise ReplicaLost("its answer broke off") from None


def _never_taken(running: Future[None], taken: Future[RemoteHandle]) -> None:
    """Fail a submission whose run has ended without a word: the loop was stopped under it."""
    if not taken.done():
        taken.set_exception(EngineDraining("the server is shutting down", retry_after=5.0))


def work_of(request: GenerationRequest) -> tuple[tuple[int, int], int, int]:
    """Return a request's size, its U-Net rows a step and its evaluations."""
    evaluations = 0
    if request.strength < 1.0:
        evaluations = evaluation_count(request.sampler, request.steps, request.strength)
    return (request.width, request.height), guidance_rows(request.cfg_scale), evaluations
