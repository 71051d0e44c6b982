"""`/api/account` and `/api/account/usage`: what a key has, may and has used."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.accounts.access import Caller
from server.accounts.auth import AnyCaller
from server.accounts.pricing import credits_text
from server.http.envelope import success
from server.img2img.fields import whole_number
from server.img2img.form import failure_responses

if TYPE_CHECKING:
    from server.accounts.service import Accounts

MAX_DAYS = 366
_EPOCH = datetime.date(1970, 1, 1)

router = APIRouter(prefix="/api/account", tags=["account"])


def _accounts(request: Request, caller: Caller) -> Accounts | None:
    accounts: Accounts | None = request.app.state.accounts
    return accounts if caller.account is not None else None


_FAILURES = (401, 429, 500, 503)


@router.get("", summary="Balance and limits of the key", responses=failure_responses(*_FAILURES))
async def account(request: Request, caller: AnyCaller) -> Response:
    """The key's name, its credits as decimal text, and its limits; null where there is none."""
    accounts = _accounts(request, caller)
    credits: dict[str, str] | None = None
    if accounts is not None and accounts.charges and caller.account is not None:
        balance = await accounts.ledger.balance(caller.account.id)
        credits = {
            "balance": credits_text(balance.available),
            "reserved": credits_text(balance.held),
        }
    limits: dict[str, Any] = {"rate": None, "concurrency": caller.concurrency}
    if caller.rate is not None:
        limits["rate"] = str(caller.rate)
    return success({"name": caller.name, "credits": credits, "limits": limits})


@router.get(
    "/usage",
    summary="Pictures and credits by day",
    responses=failure_responses(400, *_FAILURES),
)
async def usage(
    request: Request,
    caller: AnyCaller,
    days: Annotated[
        int,
        Query(ge=1, le=MAX_DAYS, description="How many days back, today included."),
        whole_number(1, MAX_DAYS),
    ] = 30,
) -> Response:
    """Pictures made and credits charged on each UTC day that has any, oldest first."""
    accounts = _accounts(request, caller)
    used: list[dict[str, Any]] = []
    if accounts is not None and caller.account is not None:
        found = await accounts.ledger.usage(caller.account.id, days)
        used = [
            {
                "day": (_EPOCH + datetime.timedelta(days=day.day)).isoformat(),
                "pictures": day.pictures,
                "credits": credits_text(day.amount),
            }
            for day in found
        ]
    return success({"name": caller.name, "days": used})
