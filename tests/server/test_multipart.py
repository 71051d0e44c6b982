from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.envelope import ApiError, BadRequest, ContentTooLarge, UnsupportedMedia
from server.multipart import MAX_FIELD_BYTES, MAX_PARTS, Part, read_form

CONTENT_TYPE = "multipart/form-data; boundary=xyz"
WANTED = frozenset({"prompt", "init_image"})


def part(disposition: str, data: bytes, *headers: str) -> bytes:
    lines = [f"Content-Disposition: form-data; {disposition}", *headers]
    return b"--xyz\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + data + b"\r\n"


def read(
    body: bytes,
    content_type: str | None = CONTENT_TYPE,
    *,
    chunk: int = 10_000,
    max_file_bytes: int = 1000,
) -> dict[str, Part]:
    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk):
            yield body[start : start + chunk]

    return asyncio.run(
        read_form(
            content_type,
            stream(),
            wanted=WANTED,
            file_fields=frozenset({"init_image"}),
            max_file_bytes=max_file_bytes,
        )
    )


END = b"--xyz--\r\n"


@given(st.integers(1, 50), st.binary(max_size=300))
def test_parts_however_the_body_is_cut_into_chunks(chunk: int, data: bytes) -> None:
    body = part('name="prompt"', b"a cat") + part('name="init_image"; filename="a.png"', data)
    parts = read(body + END, chunk=chunk)
    assert parts["prompt"].text == "a cat"
    assert not parts["prompt"].is_file
    if b"--xyz" not in data:
        assert parts["init_image"].data == data
        assert parts["init_image"].is_file


def test_the_last_of_repeated_fields_counts() -> None:
    body = part('name="prompt"', b"first") + part('name="prompt"', b"second") + END
    assert read(body)["prompt"].text == "second"


def test_unknown_fields_are_not_kept() -> None:
    body = part('name="other"', b"x" * MAX_FIELD_BYTES * 3) + part('name="prompt"', b"a") + END
    assert set(read(body)) == {"prompt"}


@pytest.mark.parametrize(
    ("disposition", "headers"),
    [
        ('name="init_image"; filename="a.png"', ()),
        ("name=\"init_image\"; filename*=UTF-8''%C3%A4.png", ()),
        ('name="init_image"', ("Content-Type: image/png",)),
        ('name="init_image"', ("Content-Type: application/octet-stream",)),
    ],
)
def test_what_is_a_file(disposition: str, headers: tuple[str, ...]) -> None:
    assert read(part(disposition, b"\x89PNG", *headers) + END)["init_image"].is_file


def test_text_with_a_type_is_text() -> None:
    body = part('name="prompt"', "chat à l’huile".encode(), "Content-Type: text/plain") + END
    parts = read(body)
    assert not parts["prompt"].is_file
    assert parts["prompt"].text == "chat à l’huile"


def test_text_that_is_typed_as_bytes_is_text() -> None:
    body = part('name="prompt"', b"a cat", "Content-Type: application/octet-stream") + END
    assert not read(body)["prompt"].is_file


def test_file_input_with_nothing_chosen() -> None:
    body = part('name="init_image"; filename=""', b"", "Content-Type: application/octet-stream")
    assert read(body + END)["init_image"].is_absent_file


def test_a_form_without_fields() -> None:
    assert read(END) == {}


COMPLETE = (
    part('name="prompt"', b"a cat")
    + part('name="init_image"; filename="a.png"', b"\x89PNG" * 50)
    + END
)


@pytest.mark.parametrize("length", [0, 3, 20, 60, 150, len(COMPLETE) - 10, len(COMPLETE) - 4])
def test_a_cut_body_is_malformed(length: int) -> None:
    with pytest.raises(BadRequest, match="malformed multipart form"):
        read(COMPLETE[:length])


@pytest.mark.parametrize(
    "body",
    [
        b"this is no form",
        b"--abc\r\n\r\n\r\n--abc--\r\n",
        b"--xyz\r\nNo Header\r\n\r\nx\r\n" + END,
        b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
        b"--xyz\r\n\r\nx\r\n" + END,
        b"--xyz\r\nContent-Disposition: " + b"x" * 100_000 + b"\r\n\r\nx\r\n" + END,
    ],
)
def test_malformed_bodies(body: bytes) -> None:
    with pytest.raises(BadRequest, match="malformed multipart form"):
        read(body)


def test_missing_and_oversized_boundary() -> None:
    with pytest.raises(BadRequest, match="has no boundary"):
        read(b"", "multipart/form-data")
    with pytest.raises(BadRequest, match="malformed"):
        read(b"", "multipart/form-data; boundary=" + "x" * 10_000)


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/json", "application/x-www-form-urlencoded", "multipart/mixed; b=1"],
)
def test_other_content_types_say_what_is_wanted(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMedia, match="multipart/form-data"):
        read(b"{}", content_type)


def test_file_over_its_limit() -> None:
    body = part('name="init_image"; filename="a"', b"x" * 1001) + END
    with pytest.raises(ContentTooLarge, match=r"init_image: the file is over .* MiB"):
        read(body)
    assert len(read(body, max_file_bytes=1001)["init_image"].data) == 1001


def test_text_over_its_limit() -> None:
    with pytest.raises(ContentTooLarge, match="prompt: the text is over 64 KiB"):
        read(part('name="prompt"', b"x" * (MAX_FIELD_BYTES + 1)) + END)


def test_too_many_fields() -> None:
    field = part('name="other"', b"x")
    assert read(field * MAX_PARTS + END) == {}
    with pytest.raises(BadRequest, match="more than 100 fields"):
        read(field * (MAX_PARTS + 1) + END)


@given(st.binary(max_size=200))
def test_any_bytes_give_parts_or_an_api_error(noise: bytes) -> None:
    for body in (noise, b"--xyz\r\n" + noise, COMPLETE[:60] + noise + COMPLETE[60:]):
        try:
            assert set(read(body)) <= WANTED
        except ApiError as error:
            assert error.status in (400, 413)
