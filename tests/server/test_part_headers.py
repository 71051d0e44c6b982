from __future__ import annotations

from contextlib import suppress
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.errors import BadRequest
from server.http.part_headers import MAX_HEADER_BYTES, MAX_LOOKALIKES, PartHeaders
from tests.server.forms import END, part, read


def folded(text: str) -> bytes:
    head = 'Content-Disposition: form-data;\r\n name="init_image";\r\n\t filename="a.png"'
    return f"--xyz\r\n{head}\r\n{text}\r\n\r\n".encode()


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"\r\n",
        b"\n",
        b"\xef\xbb\xbf",
        b"MIME-Version: 1.0\r\n\r\n",
        b"MIME-Version: 1.0\r\n\xef\xbb\xbf",
        b"no --xyz here, --xyz\r\n--xy\r\n--xyzz\r\n",
        b"--xyz is not a delimiter\r\n",
        b"x" * 500 + b"\r\n",
    ],
)
def test_preamble_and_epilogue_say_nothing(before: bytes, chunk: int) -> None:
    body = part('name="prompt"', b"a cat") + part('name="init_image"; filename="a"', b"\x89PNG")
    after = part('name="prompt"', b"another") + END
    parts = read(before + body + END + after, chunk=chunk)
    assert parts["prompt"].text == "a cat"
    assert parts["init_image"].data == b"\x89PNG"
    assert read(before + END, chunk=chunk) == {}


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_folded_headers_and_blanks_after_the_boundary(chunk: int) -> None:
    type_ = "Content-Type:\r\n image/png"
    body = folded(type_) + b"\x89P\r\n NG\r\n\r\n\r\n" + part('name="prompt"', b"a")
    body = body.replace(b"--xyz\r\n", b"--xyz \t \r\n") + b"--xyz-- \r\n"
    parts = read(body, chunk=chunk)
    assert parts["init_image"].is_file
    assert parts["init_image"].file_name == "a.png"
    assert parts["init_image"].data == b"\x89P\r\n NG\r\n\r\n"
    assert parts["prompt"].text == "a"


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_a_form_whose_lines_end_in_lf_alone(chunk: int) -> None:
    message = MIMEMultipart("form-data", "xyz")
    for name, text in (("prompt", "蓝色圆"), ("other", "x")):
        text_part = MIMEText(text, "plain", "utf-8")
        text_part.add_header("Content-Disposition", "form-data", name=name)
        message.attach(text_part)
    image = MIMEApplication(b"\x89PNG\r\n\x1a\n", "png")
    image.add_header("Content-Disposition", "form-data", name="init_image", filename="a" * 90)
    message.attach(image)
    body = message.as_bytes().split(b"\n\n", 1)[1]
    for sent in (body, body.replace(b"\n", b"\r\n")):
        parts = read(sent, chunk=chunk)
        assert parts["prompt"].text == "蓝色圆"
        assert parts["init_image"].data == b"\x89PNG\r\n\x1a\n"
        assert parts["init_image"].file_name == "a" * 90


PIECES = st.lists(st.sampled_from([b"\r", b"\n", b"--", b"xyz", b"-", b" ", b"a"]))


@given(st.integers(1, 20), PIECES, st.booleans())
def test_data_that_resembles_the_boundary(chunk: int, pieces: list[bytes], in_lf: bool) -> None:
    data = b"".join(pieces)
    around = part('name="init_image"; filename="a"', b"<data>") + part('name="prompt"', b"a cat")
    body = (around + END).replace(b"\r\n", b"\n" if in_lf else b"\r\n")
    body = body.replace(b"<data>", data)
    if b"\n--xyz" not in b"\n" + data:
        parts = read(body, chunk=chunk)
        assert parts["init_image"].data == data
        assert parts["prompt"].text == "a cat"
    whole = cut = None
    with suppress(BadRequest):
        whole = read(body)
    with suppress(BadRequest):
        cut = read(body, chunk=chunk)
    assert whole == cut


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize("after", [b"\r\n", b" \r\n"])
def test_a_form_in_lf_has_no_delimiter_in_crlf(chunk: int, after: bytes) -> None:
    """The parser would take it for one, and any number of headers after it."""
    start = part('name="prompt"', b"hello").replace(b"\r\n", b"\n")
    later = b"\r\n--xyz" + after + part('name="prompt"', b"world", *["a:"] * 50)[7:]
    with pytest.raises(BadRequest, match="its lines end now in LF, now in CRLF"):
        read(start + later + b"\n--xyz--\n", chunk=chunk)
    told = read(start + later.replace(b"\r\n", b"\n") + b"--xyz--\n", chunk=chunk)
    assert told["prompt"].text == "world"


def test_any_number_of_headers_within_their_bytes() -> None:
    many = [f"X-Header-{number}: {'v' * 20}" for number in range(1500)]
    body = part('name="prompt"', b"a cat", *many) + END
    assert read(body)["prompt"].text == "a cat"
    shorter = part('name="prompt"', b"a cat", *many[:1000])
    with pytest.raises(BadRequest, match=f"headers are over {MAX_HEADER_BYTES // 1024} KiB"):
        read(shorter * 2 + END)


def test_a_body_with_another_boundary_says_so() -> None:
    for body in (b"", b"--abc\r\n\r\nx\r\n--abc--\r\n", b"x--xyz\r\n"):
        with pytest.raises(BadRequest, match="no line of it is the boundary"):
            read(body)


@pytest.mark.parametrize("line", [b"\r\n--xyzz", b"\r\n--xyz-", b"\r\n--xyz\r", b"\r\n--xyz x"])
def test_a_flood_of_lines_that_resemble_the_boundary(line: bytes) -> None:
    for start in (part('name="other"', b""), b""):
        with pytest.raises(BadRequest, match="choose another"):
            read(start + line * (MAX_LOOKALIKES + 2) + b"\r\n" + END)


def test_a_line_that_turned_out_to_be_no_boundary_is_forgotten() -> None:
    part_headers = PartHeaders(b"xyz")
    body = part('name="prompt"', b"a cat")
    assert part_headers.feed(b"--xyz" + b" " * 5000) == b""
    assert part_headers.feed(b"x" * 300 + b"\r\n") == b""
    ready = part_headers.feed(body + END)
    assert ready == b"\r\n" + body + END.strip()
