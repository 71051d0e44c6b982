"""Keys and credits of a running server: opened at the start, looked after, closed at the end.

What a crash left open is released when the server starts, and what any server left open when its
lease has run out. While the database is away requests are answered 503 and it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

from server.bookkeeping import Account, DatabaseAway, DatabaseUnusable
from server.clock import Clock, now_millis
from server.database import Database
from server.keys import KeyStore
from server.ledger import Ledger
from server.settings import MIB, Settings

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
SWEEP_SECONDS = 15.0
OPENING_SECONDS = 10.0
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
        # No two servers listen on one port of a host: what this name left open, a dead one did.
        self.server_name = f"{socket.gethostname()}:{settings.port}"
        self.failure: DatabaseUnusable | None = None
        self._open = False
        self._unsettled: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Whether the schema is there and what a crash left has been released."""
        return self._open

    async def start(self) -> None:
        """Open the database if it is there, and go on looking after it; or set `failure`."""
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                await self._try_to_open()
        except DatabaseUnusable as error:
            self.failure = error
            return
        except (DatabaseAway, TimeoutError):
            pass
        self._keeper = asyncio.create_task(self._look_after())

    async def stop(self) -> None:
        """Release what is to be released, and close."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        with suppress(DatabaseAway):
            await self._withdraw_unsettled()
        await self.database.close()

    async def find(self, key: str) -> Account | None:
        """The account that a key opens. Raises DatabaseAway."""
        if not self._open:
            raise DatabaseAway
        return await self.keys.find(key)

    async def release(self, reservation_id: str) -> None:
        """Release now, or as soon as the database is back."""
        try:
            await self.ledger.release(reservation_id)
        except DatabaseAway:
            self._unsettled.add(reservation_id)

    def withdraw_later(self, reservation_id: str) -> None:
        """Undo, when that is possible, a settlement that may or may not have gone through."""
        self._unsettled.add(reservation_id)

    async def _try_to_open(self) -> None:
        await self.database.migrate()
        released = await self.ledger.release_stale(self.server_name)
        self._open = True
        logger.info(
            "accounts open",
            extra={"fields": {"database": self.database.name, "released": released}},
        )
        if not await self.keys.list():
            logger.warning("there is no key yet: make one with `img2img keys create NAME`")

    async def _look_after(self) -> None:
        while True:
            hurry = not self._open or self._unsettled
            await asyncio.sleep(RETRY_SECONDS if hurry else SWEEP_SECONDS)
            try:
                if not self._open:
                    await self._try_to_open()
                await self._withdraw_unsettled()
                if released := await self.ledger.release_stale():
                    logger.warning("released", extra={"fields": {"stale": released}})
                await self.ledger.drop_old_answers()
            except DatabaseAway:
                continue
            except DatabaseUnusable as error:
                logger.error(str(error))
            except Exception:
                logger.exception("looking after the accounts failed")

    async def _withdraw_unsettled(self) -> None:
        for reservation_id in list(self._unsettled):
            await self.ledger.withdraw(reservation_id)
            self._unsettled.discard(reservation_id)
