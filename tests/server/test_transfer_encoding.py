from __future__ import annotations

import base64
import quopri

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.transfer_encoding import UndecodablePart, decoder


def decoded(encoding: str, data: bytes, chunk: int = 1000) -> bytes:
    made = decoder(encoding)
    pieces = [made.feed(data[start : start + chunk]) for start in range(0, len(data), chunk)]
    return b"".join(pieces) + made.end()


@pytest.mark.parametrize("encoding", ["", "7bit", "8BIT", " Binary "])
def test_what_stays_as_it_is(encoding: str) -> None:
    assert decoded(encoding, b"YQ== =41\r\n") == b"YQ== =41\r\n"


@given(st.binary(max_size=300), st.integers(1, 100))
def test_base64_however_it_is_cut(data: bytes, chunk: int) -> None:
    assert decoded("Base64", base64.b64encode(data), chunk) == data
    lines = base64.encodebytes(data).replace(b"\n", b"\r\n")
    assert decoded("base64", lines, chunk) == data


@given(st.binary(max_size=300), st.integers(1, 100))
def test_quoted_printable_however_it_is_cut(data: bytes, chunk: int) -> None:
    data = data.replace(b"\r", b"").replace(b"\n", b"")
    lines = quopri.encodestring(data, quotetabs=True).replace(b"\n", b"\r\n")
    assert decoded("Quoted-Printable", lines, chunk) == data


@pytest.mark.parametrize("chunk", [1, 3, 4, 1000])
@pytest.mark.parametrize("data", [b"YQ=", b"Y", b"YQ==YQ==", b"YQ==x", b"Y!Q=", b"====", b"YQ-_"])
def test_broken_base64(data: bytes, chunk: int) -> None:
    with pytest.raises(UndecodablePart, match="base64"):
        decoded("base64", data, chunk)


@pytest.mark.parametrize("encoding", ["gzip", "x-uuencode", "base64, base64"])
def test_unknown_encodings_are_named(encoding: str) -> None:
    with pytest.raises(UndecodablePart, match=f"Content-Transfer-Encoding {encoding} is not"):
        decoder(encoding)
