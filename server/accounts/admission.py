"""One request for a picture, from its key to its end: its limits, its place, its credits.

The dependency of the route closes it when the answer has been sent or has failed, whatever the way,
and a stream before it tells of a failure: what was not settled by then is released.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Header, Request

from server.accounts.access import Access, Caller
from server.accounts.auth import require_key
from server.accounts.pricing import credits_text
from server.accounts.types import Balance, Idempotency, Order
from server.errors import (
    DatabaseAway,
    IdempotencyError,
    InsufficientCredits,
    LedgerError,
    OutcomeUnknown,
    ReservationLost,
    TooManyAtOnce,
    shown,
)
from server.http.errors import BadRequest, TooManyRequests
from server.http.ignored_fields import IGNORED_FIELDS_HEADER
from server.http.multipart import Part
from server.http.response_headers import response_headers
from server.observability.logs import current_request_id
from server.observability.request_record import Credits, current_record

if TYPE_CHECKING:
    from server.accounts.service import Accounts

IDEMPOTENCY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
CHARGED_HEADER = "X-Credits-Charged"
REMAINING_HEADER = "X-Credits-Remaining"
SEED_HEADER = "Seed"
FINISH_HEADER = "Finish-Reason"
FILTERED_HEADER = "X-Filtered"
MODEL_HEADER = "X-Model"
EXPOSED_HEADERS = (
    SEED_HEADER,
    FINISH_HEADER,
    FILTERED_HEADER,
    MODEL_HEADER,
    CHARGED_HEADER,
    REMAINING_HEADER,
    REPLAYED_HEADER,
    IGNORED_FIELDS_HEADER,
    "RateLimit",
    "RateLimit-Policy",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
)
"""What pages of other origins may read of an answer."""

SETTLE_DELAYS = (0.0, 0.2, 0.8, 1.0, 1.0, 0.7)
"""Seconds before each try to settle: a short outage costs no picture."""
SETTLE_SECONDS = 4.0
"""Seconds that all tries take together."""
RELEASE_SECONDS = 1.0
"""Seconds for which a failure's answer waits for what is released before it."""

_SANE_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}", re.ASCII)

logger = logging.getLogger(__name__)


class Admission:
    """A request that may go on. Without an account, nothing is reserved or kept."""

    def __init__(
        self,
        request: Request,
        caller: Caller,
        accounts: Accounts | None,
        place: ExitStack,
        idempotency_key: str | None = None,
    ) -> None:
        """`place` is the request's among those of its key that run, and closed with it."""
        self._accounts = accounts if caller.account is not None else None
        self._account_id = 0 if caller.account is None else caller.account.id
        self.identity = caller.identity
        self._concurrency = caller.concurrency
        self._headers = response_headers(request.scope)
        self._idempotency_key = idempotency_key
        self._idempotency: Idempotency | None = None
        self._place = place
        self._order: Order | None = None
        """What is held, or may be."""
        self._working: asyncio.Task[bytes | None] | asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._credits = Credits()

    async def kept_response(self, fingerprint: str) -> bytes | None:
        """Return the answer to the same request under the same Idempotency-Key, at no charge.

        Raises IdempotencyConflict, StillRunning or DatabaseAway.
        """
        if self._accounts is None or self._idempotency_key is None:
            return None
        self._idempotency = Idempotency(self._idempotency_key, fingerprint)
        kept = await self._accounts.ledger.answer(self._account_id, self._idempotency)
        return None if kept is None else await self._replay(self._accounts, kept)

    async def reserve(self, price: int, images: int = 1) -> bytes | None:
        """Hold the price of so many images, in tenths; or return the kept answer, if another
        request was quicker.

        Raises InsufficientCredits, TooManyAtOnce, IdempotencyConflict, StillRunning or
        DatabaseAway.
        """
        accounts = self._accounts
        if accounts is None:
            return None
        self._order = order = Order(
            id=uuid.uuid4().hex,
            account_id=self._account_id,
            amount=price if accounts.charges else 0,
            server=accounts.server_name,
            lease_seconds=accounts.lease_seconds,
            request_id=current_request_id(),
            concurrency=self._concurrency,
            idempotency=self._idempotency,
            images=images,
        )
        try:
            working = self._working = asyncio.create_task(self._reserve(accounts, order))
            kept = await asyncio.shield(working)
        except InsufficientCredits as error:
            self._headers[REMAINING_HEADER] = credits_text(error.available)
            raise
        return None if kept is None else await self._replay(accounts, kept)

    async def _reserve(self, accounts: Accounts, order: Order) -> bytes | None:
        """Not cancelled with its request: whether anything is held has to be known."""
        try:
            kept = await accounts.ledger.reserve(order)
        except (LedgerError, IdempotencyError, DatabaseAway) as error:
            if not isinstance(error, OutcomeUnknown):
                self._order = None
            raise
        if kept is not None:
            self._order = None
        elif accounts.charges:
            self._credits = current_record().credits = Credits(reserved=order.amount)
        return kept

    async def settle(
        self, answer: bytes, amount: int | None = None, images: int | None = None
    ) -> None:
        """Charge for the images and keep the answer for its key; only then may it be sent.

        ``amount`` is in tenths for so many ``images``, and no more than was reserved, which is what
        None charges.

        Raises ReservationLost or DatabaseAway; then nothing is charged and the answer must not be
        sent.
        """
        accounts, order = self._accounts, self._order
        if accounts is None or order is None:
            return
        charged = order.amount if amount is None else min(amount, order.amount)
        kept = answer if order.idempotency else None
        settle = partial(accounts.ledger.settle, order.id, kept, charged, images)
        working = self._working = asyncio.create_task(
            self._settle(accounts, order, charged, settle)
        )
        await asyncio.shield(working)

    async def _settle(
        self,
        accounts: Accounts,
        order: Order,
        charged: int,
        settle: Callable[[], Awaitable[Balance]],
    ) -> None:
        """Not cancelled with its request: what it comes to is what the request's record says."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                balance = await _tried(settle)
        except ReservationLost:
            logger.warning("the reservation was lost")
            raise
        except (DatabaseAway, TimeoutError):
            # It may have gone through all the same: the client is told of a failure, so it is
            # undone.
            self._give_up(accounts, order)
            raise DatabaseAway from None
        self._order = None
        self._credits.end(charged)
        self._add_credit_headers(accounts, charged, balance)

    def _give_up(self, accounts: Accounts, order: Order) -> None:
        accounts.withdraw_later(order)
        self._order = None
        self._credits.end()

    async def close(self) -> None:
        """Give back what was not settled, and the place. May be called again.

        A request that has failed waits for this before it is answered, so it is short: what the
        database does not take at once is left to the keeper of the accounts.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            if self._accounts is not None and self._order is not None:
                await self._release(self._accounts, self._order)
        finally:
            self._place.close()

    async def _release(self, accounts: Accounts, order: Order) -> None:
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                if self._working is not None:
                    # One that was left (its client has gone) still runs, and may yet end the order.
                    await asyncio.wait((self._working,))
                if self._order is not None:
                    await accounts.ledger.release(order)
                    self._order = None
                    self._credits.end()
        except (DatabaseAway, TimeoutError):
            if self._order is not None:
                self._give_up(accounts, order)

    async def _replay(self, accounts: Accounts, kept: bytes) -> bytes:
        self._headers[REPLAYED_HEADER] = "true"
        current_record().replayed = True
        balance = await accounts.ledger.balance(self._account_id)
        self._add_credit_headers(accounts, 0, balance)
        return kept

    @property
    def credits_told(self) -> dict[str, str] | None:
        """What the headers say of credits, once something was charged; None if nothing is."""
        if CHARGED_HEADER not in self._headers:
            return None
        return {
            "charged": self._headers[CHARGED_HEADER],
            "remaining": self._headers[REMAINING_HEADER],
        }

    def _add_credit_headers(self, accounts: Accounts, charged: int, balance: Balance) -> None:
        if accounts.charges:
            self._headers[CHARGED_HEADER] = credits_text(charged)
            self._headers[REMAINING_HEADER] = credits_text(balance.available)


async def _tried(settle: Callable[[], Awaitable[Balance]]) -> Balance:
    for delay in SETTLE_DELAYS:
        await asyncio.sleep(delay)
        with suppress(DatabaseAway):
            return await settle()
    raise DatabaseAway


def fingerprint(parts: Mapping[str, Part], media_type: str = "") -> str:
    """SHA-256 in hex of the form's fields: not of the boundary, the file's name or their order.

    Of the type that the image is asked in too, where one is given.
    """
    digest = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        content = hashlib.sha256(part.data)
        # What cannot be decoded is not the field that has the same bytes.
        content.update(part.problem.encode())
        digest.update(b"%s\0%d\0%s" % (name.encode(), part.is_file, content.digest()))
    digest.update(media_type.encode())
    return digest.hexdigest()


def _checked(key: str | None) -> str | None:
    if key is not None and not _SANE_IDEMPOTENCY_KEY.fullmatch(key):
        raise BadRequest(
            f"{IDEMPOTENCY_HEADER}: {shown(key)} is not 1 to 255 printable ASCII characters"
        )
    return key


async def admit(
    request: Request,
    caller: Annotated[Caller, Depends(require_key)],
    idempotency_key: Annotated[
        str | None,
        Header(
            alias=IDEMPOTENCY_HEADER,
            description="The same request with the same key gets the first answer again, at no "
            "charge. An addition to the hosted service's headers.",
            json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
        ),
    ] = None,
) -> AsyncIterator[Admission]:
    """Admit a request within its key's limits, before its body is read."""
    access: Access = request.app.state.access
    with ExitStack() as place:
        taken = place.enter_context(access.places.take(caller.identity, caller.concurrency))
        allowed, reset = True, 0
        if caller.rate is not None:
            # Who is refused for its number is told of its rate too, but it costs nothing of that.
            count = access.rates.hit if taken else access.rates.look
            window = await count(caller.rate, "rate", caller.identity)
            response_headers(request.scope).update(window.headers)
            allowed, reset = window.allowed, window.reset
        if not taken:
            raise TooManyAtOnce(caller.concurrency)
        if not allowed:
            raise TooManyRequests(f"this key may ask {caller.rate}", reset)
        accounts: Accounts | None = request.app.state.accounts
        admission = Admission(request, caller, accounts, place, _checked(idempotency_key))
        try:
            yield admission
        finally:
            await admission.close()


Admitted = Annotated[Admission, Depends(admit)]
