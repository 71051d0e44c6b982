from __future__ import annotations

import base64
import sys
import threading
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.accounts.admission import fingerprint
from server.http import multipart
from server.http.errors import ApiError, BadRequest, ContentTooLarge, UnsupportedMedia
from server.http.multipart import MAX_FIELD_BYTES, MAX_PARTS, refuse_encoded_body
from tests.server.forms import CONTENT_TYPE, END, WANTED, part, read


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


def test_the_charset_of_a_part_goes_before_the_forms() -> None:
    body = (
        part('name="prompt"', "蓝色圆".encode("gbk"), "Content-Type: text/plain; charset=GBK")
        + part('name="negative"', "кот".encode("cp1251"))
        + part('name="_charset_"', b"windows-1251\r\n")
        + part('name="init_image"; filename="a.png"', b"\xff\xfe", "Content-Type: a/b; charset=x")
        + END
    )
    for form_charset in ("", "; charset=koi8-r"):
        parts = read(body, CONTENT_TYPE + form_charset, wanted=WANTED | {"negative"})
        assert set(parts) == {"prompt", "negative", "init_image"}
        assert (parts["prompt"].text, parts["negative"].text) == ("蓝色圆", "кот")
        assert parts["init_image"].data == b"\xff\xfe"
        assert not any(part.problem for part in parts.values())


@pytest.mark.parametrize(
    "type_", ["form-data; charset=gbk; boundary=xyz", 'form-data; boundary="xyz"; Charset="GBK"']
)
def test_the_charset_of_the_form(type_: str) -> None:
    body = part('name="prompt"', "蓝色圆".encode("gbk"), "Content-Type: text/plain") + END
    assert read(body, f"multipart/{type_}")["prompt"].text == "蓝色圆"


def test_text_is_kept_as_utf8_without_a_byte_order_mark() -> None:
    utf_16 = part(
        'name="prompt"', "猫".encode("utf-16"), "Content-Type: text/plain; charset=UTF-16"
    )
    for body in (utf_16, part('name="prompt"', b"\xef\xbb\xbf" + "猫".encode())):
        assert read(body + END)["prompt"].data == "猫".encode()


def test_a_request_is_the_same_in_any_charset() -> None:
    utf_8 = part('name="prompt"', "кот".encode()) + END
    cyrillic = part('name="prompt"', "кот".encode("cp1251")) + END
    same = fingerprint(read(utf_8))
    assert fingerprint(read(cyrillic, f"{CONTENT_TYPE}; charset=windows-1251")) == same
    assert fingerprint(read(utf_8, f"{CONTENT_TYPE}; charset=koi8-r")) != same
    assert fingerprint(read(utf_8, f"{CONTENT_TYPE}; charset=unknown")) != same


def test_text_that_cannot_be_decoded_has_a_problem() -> None:
    for data, declared, problem in (
        (b"caf\xe9", "", "is not valid UTF-8; send it as UTF-8 or declare its charset"),
        (b"caf\xe9", "; charset=utf-8", "is not valid utf-8, its declared charset"),
        (b"a cat", "; charset=hex", "the charset hex is not known; send it as UTF-8"),
    ):
        body = part('name="prompt"', data, f"Content-Type: text/plain{declared}") + END
        assert read(body)["prompt"].problem == problem


@given(st.integers(1, 50), st.binary(max_size=200))
def test_transfer_encodings(chunk: int, data: bytes) -> None:
    lines = base64.encodebytes(data).replace(b"\n", b"\r\n")
    parts = read(
        part('name="prompt"', b"a=20c=\r\nat", "Content-Transfer-Encoding: Quoted-Printable")
        + part('name="init_image"; filename="a"', lines, "content-transfer-encoding: BASE64 ")
        + END,
        chunk=chunk,
    )
    assert parts["prompt"].text == "a cat"
    assert parts["init_image"].data == data


def test_a_broken_transfer_encoding_is_a_problem_of_its_field() -> None:
    for encoding, data, problem in (
        ("base64", b"a blue circle!", "is not valid base64"),
        ("base64", b"YWJ", "is cut short"),
        ("x-uuencode", b"abc", "Content-Transfer-Encoding x-uuencode is not supported"),
    ):
        for place in ('name="prompt"', 'name="init_image"; filename="a"'):
            body = part(place, data, f"Content-Transfer-Encoding: {encoding}") + END
            for chunk in (1, 64, len(body)):  # however much of it was decoded before the fault
                (read_part,) = read(body, chunk=chunk).values()
                assert read_part.problem.startswith(problem)
                assert not read_part.data
    body = part('name="other"', b"!", "Content-Transfer-Encoding: gzip") + part(
        'name="prompt"', b"a"
    )
    assert read(body + END)["prompt"].text == "a"


def test_limits_hold_for_what_was_decoded() -> None:
    lines = base64.encodebytes(b"x" * 1000)
    encoded = "Content-Transfer-Encoding: base64"
    body = part('name="init_image"; filename="a"', lines, encoded) + END
    assert len(read(body)["init_image"].data) == 1000
    with pytest.raises(ContentTooLarge, match="init_image: the file is over"):
        read(body, max_file_bytes=999)


def test_text_in_the_files_place_has_the_files_limit_and_is_not_held() -> None:
    body = part('name="init_image"', b"x" * 300_000) + END
    kept = read(body, max_file_bytes=300_000)["init_image"]
    assert not kept.is_file
    assert len(kept.data) == MAX_FIELD_BYTES
    with pytest.raises(ContentTooLarge, match="init_image: the file is over"):
        read(body, max_file_bytes=299_999)


def test_file_input_with_nothing_chosen() -> None:
    body = part('name="init_image"; filename=""', b"", "Content-Type: application/octet-stream")
    assert read(body + END)["init_image"].is_left_out


@pytest.mark.parametrize(
    ("disposition", "data", "headers"),
    [
        ('filename="a.png"', b"", ()),
        ("filename*=UTF-8''a.png", b"", ()),
        ('filename=""', b"!", ("Content-Transfer-Encoding: base64",)),
        ("", b"!", ("Content-Transfer-Encoding: base64",)),
        ("", b"x", ()),
    ],
)
def test_what_was_meant_as_a_file(disposition: str, data: bytes, headers: tuple[str, ...]) -> None:
    body = part(f'name="init_image"; {disposition}', data, *headers) + END
    assert not read(body)["init_image"].is_left_out
    blank = part('name="init_image"', b" \r\n") + END
    assert read(blank)["init_image"].is_left_out


def test_of_files_that_count_once_the_first_that_holds_anything_does() -> None:
    told: list[bytes] = []
    blank = part('name="init_image"; filename=""', b"")
    files = [part('name="init_image"; filename="a"', data) for data in (b"one", b"two")]
    body = blank + b"".join(files) + END
    kept = read(body, keep_first=frozenset({"init_image"}), on_unknown=told.append)
    assert (kept["init_image"].data, told) == (b"one", [b"init_image"])


@pytest.mark.parametrize(("name", "data"), [("a", b" " * 300_000), ("", b" " * 299_999 + b"x")])
def test_repetitions_of_a_file_do_not_search_it_again(name: str, data: bytes) -> None:
    small = part('name="init_image"; filename="b"', b"y")
    body = part(f'name="init_image"; filename="{name}"', data) + small * 100 + END
    searched = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal searched
        if event == "c_call" and getattr(arg, "__name__", "") in ("isspace", "strip"):
            of = getattr(arg, "__self__", b"")
            searched += len(of) if isinstance(of, bytes | bytearray) else 0

    keep_first = frozenset({"init_image"})
    sys.setprofile(count)
    try:
        kept = read(body, chunk=65536, max_file_bytes=300_000, keep_first=keep_first)
    finally:
        sys.setprofile(None)
    assert kept["init_image"].data == data
    assert len(data) <= searched < 2 * len(body)


def test_text_behind_more_blanks_than_are_held_was_meant() -> None:
    body = part('name="init_image"', b" " * MAX_FIELD_BYTES + b"x") + END
    assert not read(body, max_file_bytes=300_000)["init_image"].is_left_out


def test_long_texts_are_decoded_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()

    def noted(data: bytes | bytearray, label: str = "") -> str:
        threads.add(threading.get_ident())
        return data.decode()

    monkeypatch.setattr(multipart, "decode_text", noted)
    wanted = frozenset({"a", "b"})
    body = b"".join(part(f'name="{name}"', b"x" * 40_000) for name in wanted) + END
    assert all(len(read_part.text) == 40_000 for read_part in read(body, wanted=wanted).values())
    assert threads
    assert threading.get_ident() not in threads


def test_a_form_without_fields() -> None:
    assert read(END) == {}
    assert read(b"\r\n" + END) == {}


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("name=prompt", "prompt"),
        ("NAME=prompt", "prompt"),
        ('name = "prompt" ; x=y', "prompt"),
        ("filename*=UTF-8''a.png; name=\"init_image\"", "init_image"),
        ('name="init_image"; filename="a;b\\"c.png"', "init_image"),
        ('name="init_image"; filename="猫.png"', "init_image"),
    ],
)
def test_ways_to_write_a_name(disposition: str, name: str) -> None:
    assert set(read(part(disposition, b"x") + END)) == {name}


def test_unknown_fields_are_told_as_they_come() -> None:
    told: list[bytes] = []
    body = (
        part('name="mask"; filename="a.png"', b"x")
        + part('name="_charset_"', b"utf-8")
        + part('name="Prompt"', b"x")
        + part('name="a%22b%0D%0A"', b"x")
        + part('name="gr\xf6\xdfe"', b"x")
        + part('name="prompt"', b"x") * 2
        + part('name="mask"', b"x")
    )
    read(body + END, on_unknown=told.append)
    assert told == [b"mask", b"Prompt", b'a"b\r\n', "größe".encode(), b"mask"]
    del told[:]
    with pytest.raises(BadRequest, match="ends before"):
        read(part('name="mask"', b"x") + b"--xyz\r\n", on_unknown=told.append)
    assert told == [b"mask"]


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


@pytest.mark.parametrize("encoding", ["gzip", "identity, br", "x" * 500])
def test_an_encoded_body_is_refused_by_name(encoding: str) -> None:
    named = encoding.split(", ")[-1][:100]
    with pytest.raises(UnsupportedMedia, match=f"Content-Encoding: {named} is not supported"):
        refuse_encoded_body(["identity", encoding])
    refuse_encoded_body(["identity", "", " Identity ,"])
    refuse_encoded_body([])


def test_missing_and_oversized_boundary() -> None:
    with pytest.raises(BadRequest, match="has no boundary"):
        read(b"", "multipart/form-data")
    with pytest.raises(BadRequest, match="malformed"):
        read(b"", "multipart/form-data; boundary=" + "x" * 10_000)
    with pytest.raises(BadRequest, match="its boundary is over 256 bytes"):
        read(b"", "multipart/form-data; boundary=" + "x" * 257)
    longest = "x" * 256
    assert (
        read(END.replace(b"xyz", longest.encode()), f"multipart/form-data; boundary={longest}")
        == {}
    )


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


@pytest.mark.parametrize("length", [MAX_FIELD_BYTES, MAX_FIELD_BYTES + 1, 40 * MAX_FIELD_BYTES])
def test_text_over_its_limit_is_a_problem_of_its_field_and_is_not_held(length: int) -> None:
    body = part('name="prompt"', b"x" * length) + part('name="init_image"; filename="a"', b"x")
    parts = read(body + END)
    over = length > MAX_FIELD_BYTES
    assert parts["prompt"].problem == ("the text is over 64 KiB" if over else "")
    assert len(parts["prompt"].data) == (0 if over else length)
    assert parts["init_image"].data == b"x"


def test_too_many_fields() -> None:
    field = part('name="other"', b"x")
    assert read(field * MAX_PARTS + END) == {}
    with pytest.raises(BadRequest, match="more than 250 fields"):
        read(field * (MAX_PARTS + 1) + END)


@given(st.binary(max_size=200))
def test_any_bytes_give_parts_or_an_api_error(noise: bytes) -> None:
    for body in (noise, b"--xyz\r\n" + noise, COMPLETE[:60] + noise + COMPLETE[60:]):
        try:
            assert set(read(body)) <= WANTED
        except ApiError as error:
            assert error.status in (400, 413)
