from __future__ import annotations

from urllib.parse import unquote_to_bytes

from server.http.ignored_fields import IgnoredFields


def header(*names: bytes) -> str | None:
    headers: dict[str, str] = {}
    ignored = IgnoredFields(headers)
    for name in names:
        ignored.add(name)
    return headers.get("X-Ignored-Fields")


def test_each_name_once_in_order() -> None:
    assert header(b"mask", b"guidance", b"mask") == "mask, guidance"
    assert header() is None
    assert header(b"") is None


def test_names_that_a_header_could_not_hold() -> None:
    names = [b"a b", b"init[]", b"a,b", b"x\r\nSet-Cookie: y", "größe".encode(), b"\xff%", b"50%25"]
    told = header(*names)
    assert told is not None
    assert told.startswith("a%20b, init%5B%5D, a%2Cb, x%0D%0ASet-Cookie%3A%20y, ")
    assert [unquote_to_bytes(name) for name in told.split(", ")] == names


def test_it_stays_short() -> None:
    told = header(*(b"field-%d-%s" % (number, b"\xff" * 200) for number in range(50)))
    assert told is not None
    assert 600 < len(told) <= 1024
    told = header(*(b"field-%d" % number for number in range(500)), b"x")
    assert told is not None
    assert 1000 < len(told) <= 1024
