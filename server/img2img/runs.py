"""Runs that outlive their connection: those that their client gave an id.

Such a run stays the request that began it, which goes on without its client: its place, its
reservation, its time limit and its record are that request's. Who has the key and the id may watch
it and withdraw it. It is withdrawn, at no charge, once nobody has watched it for the grace time.
Its answer is kept where finished images are (`image_store.py`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from enum import StrEnum
from hashlib import sha256
from typing import Any

from pipelines.errors import GenerationCancelled
from server.engine_service import Handle
from server.errors import RunIdInUse, RunWithdrawn
from server.http.waiting import TimeLimit
from server.img2img.image_store import ImageStore
from server.img2img.service import Batch

_MOST_CALLERS, MOST_IDS = 1000, 100
"""Callers whose withdrawn ids are remembered, and ids of each, the last ones: nobody's push out
another's."""


class Withdrawal(StrEnum):
    """What a withdrawal met."""

    CANCELLED = "cancelled"
    FINISHED = "finished"
    UNKNOWN = "unknown"


class Run:
    """One run. Used on the event loop alone."""

    def __init__(self, name: str, limit: TimeLimit, grace: float) -> None:
        self.name = name
        self.limit = limit
        self.headers: dict[str, str] = {}
        self._grace = grace
        self._batch: Batch | None = None
        self._work: asyncio.Task[bytes] | None = None
        self._end: asyncio.Task[None] | None = None
        self._watchers = 0
        self._alone: asyncio.TimerHandle | None = None
        self._withdrawn = False
        self._charging = False
        self.let_go = False
        """Whether its answer is not to be kept: it was withdrawn, or its client has it."""

    def start(
        self,
        batch: Batch,
        work: Coroutine[Any, Any, bytes],
        keep: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Go on with what the engine has; ``work`` returns the answer's body, failures too.

        It is told at once, and kept by ``keep`` before the run ends: who asks meanwhile finds it
        here, who asks later in the store.
        """
        self._batch = batch
        self._work = asyncio.create_task(work)
        self._end = asyncio.create_task(self._kept(keep))
        if self._withdrawn:
            batch.cancel()

    async def _kept(self, keep: Callable[[bytes], Awaitable[None]]) -> None:
        await keep(await self.answer())

    @property
    def begun(self) -> bool:
        return self._work is not None

    @property
    def answered(self) -> bool:
        """Whether its answer is there, and kept or about to be."""
        return self._work is not None and self._work.done()

    @property
    def handle(self) -> Handle:
        """Return the engine's handle of its image."""
        assert self._batch is not None
        return self._batch.running[0].handle

    async def answer(self) -> bytes:
        """Wait for the answer's body, which goes on if the caller is cancelled."""
        assert self._work is not None
        return await asyncio.shield(self._work)

    async def ended(self) -> None:
        """Wait for its end, whatever that is."""
        if self._end is not None:
            await asyncio.wait((self._end,))

    def watch(self) -> Watch:
        """Count one more who watches."""
        self._watchers += 1
        if self._alone is not None:
            self._alone.cancel()
        return Watch(self)

    def unwatch(self) -> None:
        self._watchers -= 1
        if self._watchers == 0 and self.begun and not self.answered:
            self._alone = asyncio.get_running_loop().call_later(self._grace, self.withdraw)

    def withdraw(self) -> bool:
        """Withdraw it and return True; it is never charged then. False: it is charged already."""
        if self._charging:
            return False
        self._withdrawn = True
        if self._batch is not None:
            self._batch.cancel()
        return True

    def begin_charging(self) -> None:
        """Note that it cannot be withdrawn any more. Raises GenerationCancelled if it was."""
        if self._withdrawn:
            raise GenerationCancelled("withdrawn")
        self._charging = True

    def close(self) -> None:
        """End what still goes on."""
        if self._alone is not None:
            self._alone.cancel()
        if self._work is not None and not self._work.done():
            self.withdraw()
            self._work.cancel()
        if self._end is not None:
            self._end.cancel()


class Watch:
    """One who watches a run, until `cancel`."""

    def __init__(self, run: Run) -> None:
        self._run: Run | None = run

    def cancel(self) -> None:
        """Watch no more; what nobody watches is withdrawn after the grace time."""
        run, self._run = self._run, None
        if run is not None:
            run.unwatch()


class Runs:
    """The runs by the identity of their callers and their ids. Used on the event loop alone.

    Those that go on are as many as the engine takes; their answers are in ``store``, within its
    bounds. ``grace`` in seconds; 0 keeps none.
    """

    def __init__(self, grace: float, store: ImageStore) -> None:
        self.grace = grace
        self._store = store
        self._running: dict[str, Run] = {}
        self._withdrawn: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()

    @contextmanager
    def open(self, identity: str, run_id: str, limit: TimeLimit) -> Iterator[Run]:
        """List a run while the block runs.

        Raises RunIdInUse, or RunWithdrawn for an id that was withdrawn, before or while it ran: a
        client that asks again by itself is not to have it made after all.
        """
        name = _name(identity, run_id)
        if name in self._running:
            raise RunIdInUse
        if name in self._withdrawn.get(identity, ()):
            raise RunWithdrawn
        run = self._running[name] = Run(name, limit, self.grace)
        try:
            yield run
        finally:
            run.close()
            del self._running[name]

    def find(self, identity: str, run_id: str) -> Run | None:
        """Return a run that the engine has."""
        run = self._running.get(_name(identity, run_id))
        return run if run is not None and run.begun else None

    async def keep(self, run: Run, answer: bytes) -> None:
        """Keep the answer of a run for the grace time at least, unless it is let go of.

        Raises ImageStoreAway.
        """
        if run.let_go:
            return
        await self._store.put(run.name, answer, self.grace)
        if run.let_go:  # meanwhile
            await self._store.drop(run.name)

    async def kept(self, identity: str, run_id: str) -> bytes | None:
        """Return the answer of a run that has ended, None if it is gone. Raises ImageStoreAway."""
        return await self._store.get(_name(identity, run_id))

    async def withdraw(self, identity: str, run_id: str) -> Withdrawal:
        """Withdraw a run, or let go of the answer of one that has ended. Raises ImageStoreAway.

        One that is not known may still be on its way: it is withdrawn as it comes.
        """
        name = _name(identity, run_id)
        state = self._withdraw_running(name)
        if state is None and await self._store.drop(name):
            return Withdrawal.FINISHED
        # It may have come while the store was asked.
        state = state or self._withdraw_running(name) or Withdrawal.UNKNOWN
        if state is not Withdrawal.FINISHED:
            self._remember(identity, name)
        return state

    def _withdraw_running(self, name: str) -> Withdrawal | None:
        if (run := self._running.get(name)) is None:
            return None
        if run.answered:
            run.let_go = True
        return Withdrawal.CANCELLED if run.withdraw() else Withdrawal.FINISHED

    def _remember(self, identity: str, name: str) -> None:
        ids = self._withdrawn.pop(identity, OrderedDict())
        ids.pop(name, None)
        ids[name] = None
        self._withdrawn[identity] = ids
        if len(ids) > MOST_IDS:
            ids.popitem(last=False)
        if len(self._withdrawn) > _MOST_CALLERS:
            self._withdrawn.popitem(last=False)


def _name(identity: str, run_id: str) -> str:
    """Return the name of a run, from which neither key nor id is to be had."""
    return "run-" + sha256(f"{identity}\0{run_id}".encode()).hexdigest()
