"""Keys and credits of a running server: opened at the start, looked after, closed at the end.

What a crash left open is released when a server starts, and four times a minute by every server.
While the database is away requests are answered 503 and it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from server.accounts.api_keys import KeyStore
from server.accounts.clock import Clock, now_millis
from server.accounts.db import Database, first_line, require_known
from server.accounts.ledger import Ledger
from server.accounts.presence import Presence
from server.accounts.types import Account, Order
from server.errors import DatabaseAway, DatabaseUnusable
from server.settings import MIB, Settings

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
SWEEP_SECONDS = 15.0
OPENING_SECONDS = 10.0
_WITHDRAWN_AT_ONCE = 8
"""So that after an outage those who ask now do not wait behind all that it left."""
LEASE_MARGIN_SECONDS = 60.0
"""A lease lasts as long as a request may, and this much for encoding and settling."""


class Accounts:
    """The database's keys and ledger, for one server."""

    def __init__(self, settings: Settings, *, clock: Clock = now_millis) -> None:
        """Raises DatabaseUnusable for a URL that cannot be used."""
        self.database = Database(settings.accounts_url)
        self.keys = KeyStore(self.database, clock=clock)
        self.ledger = Ledger(
            self.database,
            max_answer_bytes=int(settings.answers_mib * MIB),
            answer_seconds=settings.answers_hours * 3600,
            clock=clock,
        )
        self.charges = settings.credits
        self.lease_seconds = settings.request_timeout + LEASE_MARGIN_SECONDS
        self._data_dir = settings.data_dir
        self.presence = Presence(self.database, self._lock_folder())
        self.failure: DatabaseUnusable | None = None
        self._open = False
        self._unsettled: dict[str, Order] = {}
        self._given_up = asyncio.Event()
        self._next_sweep = 0.0
        self._keeper: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Return whether the schema is there and what a crash left has been released."""
        return self._open

    @property
    def server_name(self) -> str:
        """The name of this process in the database: no other had it or will."""
        return self.presence.name

    async def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Open the database if it is there, and go on looking after it.

        Where it cannot be used, now or when it comes back, `failure` says why and `on_failure` is
        called.
        """
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                await self._open_or_fail(on_failure)
        except (DatabaseAway, TimeoutError):
            pass
        if self.failure is None:
            self._keeper = asyncio.create_task(self._look_after(on_failure))

    async def stop(self) -> None:
        """Release what is to be released, and close."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        with suppress(DatabaseAway):
            await self._withdraw_unsettled()
            if self._open:
                await self._release_all_of(self.server_name)
        # Only now: what could not be released here is released by whoever sees that it is dead.
        self.presence.leave()
        await self.database.close()

    async def find(self, key: str) -> Account | None:
        """The account that a key opens. Raises DatabaseAway."""
        if not self._open:
            raise DatabaseAway
        return await self.keys.find(key)

    def withdraw_later(self, order: Order) -> None:
        """Undo, when that is possible, what may or may not have gone through."""
        self._unsettled[order.id] = order
        self._given_up.set()

    async def _open_or_fail(self, on_failure: Callable[[], None]) -> None:
        try:
            await self._try_to_open()
        except DatabaseUnusable as error:
            self.failure = error
        except SQLAlchemyError as error:  # No right to make the tables, for one.
            self.failure = DatabaseUnusable(f"the database cannot be used: {first_line(error)}")
        if self.failure is not None:
            on_failure()

    async def _try_to_open(self) -> None:
        has_keys = await require_known(self.database, self._data_dir)
        await self.database.migrate()
        await self.presence.enter()
        released = await self._release_of_the_dead()
        self._next_sweep = time.monotonic() + SWEEP_SECONDS
        self._open = True
        logger.info(
            "accounts open",
            extra={"fields": {"database": self.database.name, "released": released}},
        )
        if not has_keys:
            logger.warning(
                "THE DATABASE HAS NO KEY: is it the right one, and its volume mounted? Every "
                "request will be refused until a key is made with `img2img keys create NAME`",
                extra={"fields": {"database": self.database.name}},
            )

    async def _look_after(self, on_failure: Callable[[], None]) -> None:
        while self.failure is None:
            if not self._open or self._unsettled:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(SWEEP_SECONDS):
                        await self._given_up.wait()
            self._given_up.clear()
            try:
                if not self._open:
                    await self._open_or_fail(on_failure)
                    continue
                await self.presence.beat()
                await self._sweep()
                await self._withdraw_unsettled()
            except DatabaseAway:
                continue
            except Exception:
                logger.exception("looking after the accounts failed")

    async def _sweep(self) -> None:
        # Not oftener than the others beat, however often this is called.
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + SWEEP_SECONDS
        if released := await self._release_of_the_dead():
            logger.warning("released", extra={"fields": {"stale": released}})
        await self.ledger.drop_old_answers()

    async def _release_of_the_dead(self) -> int:
        released = await self.ledger.release_stale()
        for name in await self.presence.look():
            released += await self._release_all_of(name)
        return released

    async def _release_all_of(self, name: str) -> int:
        released = await self.ledger.release_stale(name)
        await self.presence.forget(name)
        return released

    def _lock_folder(self) -> Path:
        """One for all servers of this machine on this database."""
        if self.database.is_sqlite:
            return Path(f"{Path(str(self.database.url.database)).resolve()}-servers")
        return self._data_dir / "servers"

    async def _withdraw_unsettled(self) -> None:
        """Raises what kept any of them from it; that keeps none of the others."""
        places = asyncio.Semaphore(_WITHDRAWN_AT_ONCE)

        async def withdraw(order: Order) -> None:
            async with places:
                await self.ledger.withdraw(order)
            self._unsettled.pop(order.id, None)

        orders = list(self._unsettled.values())
        told = await asyncio.gather(*map(withdraw, orders), return_exceptions=True)
        for error in told:
            if error is not None:
                raise error
