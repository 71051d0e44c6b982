"""Content-Transfer-Encoding of a form's parts, decoded as the bytes come."""

from __future__ import annotations

import binascii
from typing import Protocol


class UndecodablePart(ValueError):
    """The bytes are not in the encoding that was declared, or it is not known."""


class Decoder(Protocol):
    """Turns a part's bytes as sent into its bytes as meant."""

    def feed(self, data: bytes) -> bytes:
        """Return what has become known. Raises UndecodablePart."""

    def end(self) -> bytes:
        """Return the rest. Raises UndecodablePart for data that is cut short."""


class AsIs:
    """7bit, 8bit, binary, or nothing declared."""

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


class Base64:
    """Base64, in lines of any length."""

    def __init__(self) -> None:
        self._rest = b""
        self._padded = False

    def feed(self, data: bytes) -> bytes:
        text = self._rest + data.translate(None, b" \t\r\n")
        whole = len(text) - len(text) % 4
        text, self._rest = text[:whole], text[whole:]
        if not text:
            return b""
        try:
            if self._padded:
                raise binascii.Error
            decoded = binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error:
            raise UndecodablePart("is not valid base64, its Content-Transfer-Encoding") from None
        self._padded = text.endswith(b"=")
        return decoded

    def end(self) -> bytes:
        if self._rest:
            raise UndecodablePart("is cut short: its base64 ends within four characters")
        return b""


class QuotedPrintable:
    """Quoted-printable; what is no escape stands for itself."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        data = self._rest + data
        # An "=" among the last two bytes may start an escape that goes on in the next.
        escape = data.find(b"=", max(0, len(data) - 2))
        cut = len(data) if escape < 0 else escape
        self._rest = data[cut:]
        return binascii.a2b_qp(data[:cut])

    def end(self) -> bytes:
        return binascii.a2b_qp(self._rest)


_DECODERS: dict[str, type[Decoder]] = {
    "": AsIs,
    "7bit": AsIs,
    "8bit": AsIs,
    "binary": AsIs,
    "base64": Base64,
    "quoted-printable": QuotedPrintable,
}


def decoder(encoding: str) -> Decoder:
    """Return a new decoder for the header's value. Raises UndecodablePart for an unknown one."""
    known = _DECODERS.get(encoding.strip().lower())
    if known is None:
        shown = encoding.strip()[:60].encode("ascii", "backslashreplace").decode()
        raise UndecodablePart(
            f"Content-Transfer-Encoding {shown} is not supported; send the bytes as they are, "
            "or as base64 or quoted-printable"
        )
    return known()
