"""The API keys that the settings list, and the headers that bring one."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr

AUTHENTICATION_HEADER = "Authentication"
AUTHORIZATION_HEADER = "Authorization"
_BEARER = "bearer "


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
