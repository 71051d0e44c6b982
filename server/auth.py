"""API keys in the request's headers, checked against the configured ones."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader
from pydantic import SecretStr

from server.envelope import Unauthorized

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
    """The keys that are let in; none at all lets everyone in."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value()) for key in keys]

    def check(self, offered: Iterable[str]) -> None:
        """Raise Unauthorized unless one of the offered header values is a known key."""
        if not self._digests:
            return
        keys = [key for key in map(_strip_bearer, offered) if key]
        if not keys:
            raise Unauthorized(
                f"no API key: send it in the {AUTHENTICATION_HEADER} or the "
                f"{AUTHORIZATION_HEADER} header"
            )
        if not any(self._knows(key) for key in keys):
            raise Unauthorized("the API key is not known")

    def _knows(self, key: str) -> bool:
        # Digests have one length and every one is compared, so time tells nothing of a key.
        offered = _digest(key)
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        return any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _strip_bearer(value: str) -> str:
    value = value.strip()
    if value.lower() == _BEARER.strip():
        return ""
    return value[len(_BEARER) :].strip() if value.lower().startswith(_BEARER) else value


async def require_key(
    request: Request,
    # Declared so that the API's description shows both headers; either is enough.
    authentication: Annotated[str | None, Security(_authentication)] = None,
    authorization: Annotated[str | None, Security(_authorization)] = None,
) -> None:
    """Let the request on, or raise Unauthorized before its body is read."""
    ring: KeyRing = request.app.state.keys
    ring.check(value for value in (authentication, authorization) if value is not None)


RequireKey = Depends(require_key)
