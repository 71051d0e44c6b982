"""The API keys that the settings list, and the headers that bring one."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr

AUTHENTICATION_HEADER = "Authentication"
AUTHORIZATION_HEADER = "Authorization"
AZURE_HEADER = "api-key"
_BEARER = "bearer "
_BASIC = "basic "


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
    """Return the key in a header's value: behind `Bearer `, or the password behind `Basic `."""
    value = value.strip()
    if value.lower() == _BASIC.strip():
        return ""
    if value.lower().startswith(_BASIC):
        return _password(value[len(_BASIC) :].strip()) or value
    if value.lower() == _BEARER.strip():
        return ""
    return value[len(_BEARER) :].strip() if value.lower().startswith(_BEARER) else value


def _password(encoded: str) -> str:
    """Return the password of Basic credentials (RFC 7617), `""` if they are none."""
    try:
        credentials = base64.b64decode(encoded, validate=True).decode()
    except ValueError:
        return ""
    user, colon, password = credentials.partition(":")
    return password if colon and password else user
