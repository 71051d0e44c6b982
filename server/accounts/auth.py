"""The dependency that finds out who asks, by the API key in the request's headers."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader

from server.accounts.access import Access, Caller
from server.accounts.key_ring import AUTHENTICATION_HEADER, AUTHORIZATION_HEADER, AZURE_HEADER
from server.observability.request_record import current_record

_authentication = APIKeyHeader(
    name=AUTHENTICATION_HEADER,
    scheme_name=AUTHENTICATION_HEADER,
    description="An API key, with or without `Bearer `.",
    auto_error=False,
)
_authorization = APIKeyHeader(
    name=AUTHORIZATION_HEADER,
    scheme_name=AUTHORIZATION_HEADER,
    description="An API key, with or without `Bearer `.",
    auto_error=False,
)


async def require_key(
    request: Request,
    # Declared so that the API's description shows both headers; either is enough.
    authentication: Annotated[str | None, Security(_authentication)] = None,
    authorization: Annotated[str | None, Security(_authorization)] = None,
) -> Caller:
    """Return who asks, before the body is read.

    Raises Unauthorized, TooManyRequests or DatabaseAway.
    """
    access: Access = request.app.state.access
    address = request.client.host if request.client is not None else "unknown"
    # Azure's clients send a header of their own.
    values = (authentication, authorization, request.headers.get(AZURE_HEADER))
    offered = [value for value in values if value is not None]
    caller = await access.caller(offered, address)
    current_record().key = caller.name
    return caller


AnyCaller = Annotated[Caller, Depends(require_key)]
"""The sender of a request that only needs a key."""
