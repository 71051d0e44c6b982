"""Fuzz the reader of forms: parts or an ApiError, the same however the bytes are cut."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["python_multipart", "server"]):
    from server.http.errors import ApiError
    from server.http.multipart import read_form

WANTED = frozenset({"init_image", "prompt", "steps"})
CONTENT_TYPES = (
    "multipart/form-data; boundary=B",
    'multipart/form-data; charset=gbk; boundary="B"',
)


async def _stream(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def _read(content_type: str, chunks: Sequence[bytes]) -> object:
    async def read() -> object:
        try:
            parts = await read_form(
                content_type,
                _stream(chunks),
                wanted=WANTED,
                file_fields=frozenset({"init_image"}),
                max_file_bytes=4096,
                on_unknown=lambda _: None,
            )
            # Text fields are text, unless it is said why not.
            texts = {
                name: part.text
                for name, part in parts.items()
                if name != "init_image" and not part.is_file and not part.problem
            }
            return texts, {
                name: (part.is_file, bytes(part.data), part.problem) for name, part in parts.items()
            }
        except ApiError as error:
            return error.status  # of two faults in one body either may be met first

    reading = read()
    try:
        reading.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("reading waits, though every byte is there")


def one_input(data: bytes) -> None:
    """Read ``data``; its first byte chooses the Content-Type, its second the size of chunks."""
    if len(data) < 2:
        return
    content_type, size = CONTENT_TYPES[data[0] % 2], 1 + data[1] % 64
    body = data[2:]
    cut = [body[i : i + size] for i in range(0, len(body), size)]
    whole, pieces = _read(content_type, [body]), _read(content_type, cut)
    assert whole == pieces, (whole, pieces)


def write_seeds(folder: Path) -> None:
    """Write well-formed and odd bodies, for the fuzzer to change."""
    text = b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n%s\r\n%s\r\n'
    file = (
        b'--B\r\nContent-Disposition: form-data; name="init_image"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n%s\r\n\x89PNG\r\n\x1a\n\r\n"
    )
    bodies = [
        text % (b"", b"a blue circle") + file % b"" + b"--B--\r\n",
        text % (b"Content-Type: text/plain; charset=windows-1251\r\n", b"\xf1\xe8") + b"--B--\r\n",
        text % (b"Content-Transfer-Encoding: base64\r\n", b"YQ==") + b"--B--",
        text % (b"Content-Transfer-Encoding: quoted-printable\r\n", b"a=20b") + b"--B--",
        b"preamble\r\n" + file % b"Content-Transfer-Encoding: base64\r\n" + b"--B--\r\nepilogue",
        b'--B\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\ngbk\r\n'
        + text % (b"", b"\xc0\xb6") + b"--B--\r\n",
        b'--B  \r\nContent-Disposition: form-data;\r\n name="other"\r\n\r\nx\r\n--B--\r\n',
    ]  # fmt: skip
    for index, body in enumerate(bodies):
        (folder / f"body-{index}").write_bytes(b"\0\x05" + body)


if __name__ == "__main__":
    logging.disable()  # the parser remarks on each malformed byte
    write_seeds(Path(sys.argv[-1]))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
