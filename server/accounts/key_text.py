"""The text of an API key: `i2i_`, 32 random bytes in base62 (43 characters) and a checksum of 6.

It is shown once; the database holds its SHA-256 alone, enough for a value of 256 random bits.
"""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib

KEY_PREFIX = "i2i_"
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_BYTES = 32
_RANDOM_LENGTH = 43
_CHECKSUM_LENGTH = 6


def make_key() -> str:
    """A new key. Keep what is returned nowhere: hand it to its user."""
    body = _base62(int.from_bytes(secrets.token_bytes(_RANDOM_BYTES)), _RANDOM_LENGTH)
    return KEY_PREFIX + body + _checksum(body)


def is_well_formed(text: str) -> bool:
    """Return whether `text` can be a key: its form and its checksum, without a look at the
    database."""
    body = text.removeprefix(KEY_PREFIX)
    if body == text or len(body) != _RANDOM_LENGTH + _CHECKSUM_LENGTH:
        return False
    return _checksum(body[:_RANDOM_LENGTH]) == body[_RANDOM_LENGTH:]


def digest_of(key: str) -> str:
    """SHA-256 of a key, in hex: what is kept of it."""
    return hashlib.sha256(key.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
