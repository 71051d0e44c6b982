"""JSON bodies with images in them: what is cut out, what is refused, what base64 may look like."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from server.http.errors import BadRequest, ContentTooLarge
from server.http.json_body import LONG_TEXT, MAX_VALUES, LongText, decode_image_text, parse_json

IMAGE = os.urandom(3 * LONG_TEXT + 1)
TEXT = base64.b64encode(IMAGE).decode()
MIB = 2**20


def test_long_texts_are_cut_out_wherever_they_stand() -> None:
    body = json.dumps({"a": 1, "images": [TEXT, "short", {"deep": TEXT}], "prompt": 'a "cat" \\'})
    fields = parse_json(body.encode()).fields
    assert fields["a"] == 1
    assert fields["prompt"] == 'a "cat" \\'
    first, short, second = fields["images"]
    assert short == "short"
    for text in (first, second["deep"]):
        assert isinstance(text, LongText)
        assert decode_image_text("images", text, MIB) == IMAGE


@pytest.mark.parametrize(
    "written",
    [
        TEXT.replace("/", "\\/"),
        TEXT.replace("+", "\\u002B").replace("=", "\\u003d"),
        "\\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)),
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/jpeg;charset=x;base64,{TEXT}",
        TEXT.rstrip("="),
        TEXT.replace("+", "-").replace("/", "_"),
    ],
    ids=["php", "dotnet", "lines", "data url", "loud data url", "unpadded", "url safe"],
)
def test_what_clients_make_of_base64_is_read(written: str) -> None:
    fields = parse_json(b'{"image": "%s"}' % written.encode()).fields
    assert decode_image_text("image", fields["image"], MIB) == IMAGE


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "image: is no text"),
        (None, "image: is no text"),
        ("", "image: is empty"),
        ("data:image/png;base64,", "image: is empty"),
        ("data:image/svg+xml,<svg/>", "image: is a data URL without base64"),
        ("http://127.0.0.1/x.png", "image: is an address, and none is ever fetched"),
        ("FILE:///etc/passwd", "image: is an address"),
        ("<not base64>", "image: is not base64"),
        ("\ud800", "image: is not base64"),
        (LongText(b"x" * 100 + b"\xff"), "image: is not base64"),
    ],
)
def test_what_is_no_image_is_refused_by_name(value: object, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        decode_image_text("image", value, MIB)


def test_a_file_over_the_limit_is_too_large() -> None:
    with pytest.raises(ContentTooLarge, match="image: the file is over"):
        decode_image_text("image", TEXT, len(IMAGE) - 10)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "is not JSON"),
        (b'{"a', "a text has no end"),
        (b"[1]", "is no JSON object"),
        (b'"x"', "is no JSON object"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "nested deeper"),
    ],
    ids=["cut", "open text", "list", "text", "bytes", "brackets", "deep"],
)
def test_what_is_no_object_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        parse_json(body)


@pytest.mark.parametrize("body", [b'["a",' * 400_000, b"{" + b" " * 2 * MIB + b"}"])
def test_much_that_is_no_image_is_too_large(body: bytes) -> None:
    with pytest.raises(ContentTooLarge, match="beside its images"):
        parse_json(body)


@pytest.mark.parametrize(
    "value",
    [[[1] * MAX_VALUES], [[]] * MAX_VALUES, {str(n): n for n in range(MAX_VALUES)}],
    ids=["list in a list", "empty lists", "object"],
)
def test_more_values_than_can_be_meant_are_refused_by_their_field(value: Any) -> None:
    """All that an API does with them after this is on the event loop."""
    said = f"^image: the body has over {MAX_VALUES} values up to here$"
    with pytest.raises(BadRequest, match=said):
        parse_json(json.dumps({"prompt": "a", "image": value}).encode())
    fields = parse_json(json.dumps({"a": [1] * (MAX_VALUES - 1)}).encode()).fields
    assert len(fields["a"]) == MAX_VALUES - 1


def test_an_empty_body_and_a_byte_order_mark_are_read() -> None:
    assert parse_json(b" ").fields == {}
    assert parse_json(b'\xef\xbb\xbf{"a": 1}').fields == {"a": 1}


@pytest.mark.parametrize("offset", range(7))
def test_escapes_across_the_pieces_that_an_image_is_read_in(offset: int) -> None:
    """Images are cleaned piece by piece, so that the interpreter is never held for long."""
    text = b"A" * offset + b"\\u002f" * 100_000
    text += b"A" * (-(offset + 100_000) % 4)
    decoded = decode_image_text("image", LongText(text), MIB)
    plain = b"A" * offset + b"/" * 100_000 + b"A" * (-(offset + 100_000) % 4)
    assert decoded == base64.b64decode(plain)


def test_a_text_of_quotes_is_refused_and_one_of_backslashes_read() -> None:
    with pytest.raises(BadRequest, match="over 65536 escaped quotes"):
        parse_json(b'{"image": "' + b'\\"' * 100_000 + b'"}')
    quotes = b'"' + b'\\"' * 20_000 + b'"'
    assert len(parse_json(b'{"images": [%s]}' % b", ".join([quotes] * 3)).fields["images"]) == 3
    with pytest.raises(BadRequest, match="over 65536 escaped quotes"):
        parse_json(b'{"images": [%s]}' % b", ".join([quotes] * 4))
    fields = parse_json(b'{"image": "' + b"\\\\" * 100_000 + b'"}').fields
    assert fields["image"].text == "\\" * 100_000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '[{"a": -1e999}]'])
def test_numbers_that_json_does_not_have(value: str) -> None:
    with pytest.raises(BadRequest, match=r"^steps: -?(nan|inf) is no number of JSON$"):
        parse_json(b'{"steps": %s}' % value.encode())
