"""API keys in the request's headers, and those that the settings list."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader
from pydantic import SecretStr

if TYPE_CHECKING:
    from server.accounts.access import Access, Caller

AUTHENTICATION_HEADER = "Authentication"
AUTHORIZATION_HEADER = "Authorization"
_BEARER = "bearer "

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


class KeyRing:
    """The keys that the settings list."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value()) for key in keys]

    def find(self, offered: Iterable[str]) -> int | None:
        """The place in the list of the first of the offered keys that is known."""
        for key in offered:
            # Digests have one length and every one is compared, so time tells nothing of a key.
            digest = _digest(key)
            matches = [hmac.compare_digest(digest, known) for known in self._digests]
            if any(matches):
                return matches.index(True)
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def strip_bearer(value: str) -> str:
    """A header's value without `Bearer `."""
    value = value.strip()
    if value.lower() == _BEARER.strip():
        return ""
    return value[len(_BEARER) :].strip() if value.lower().startswith(_BEARER) else value


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
    offered = [value for value in (authentication, authorization) if value is not None]
    return await access.caller(offered, address)


RequireKey = Depends(require_key)
