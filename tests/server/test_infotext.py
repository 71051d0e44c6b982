"""The settings that a file holds as text, whatever wrote it, and files that hold none."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from server.images.encode import ImageFormat, encode_image
from server.images.files import png
from server.images.infotext import infotext, settings_in

TEXT = "a caf\u00e9, \u732b\nSteps: 10, Sampler: Euler, Seed: 7"
PIXELS = np.zeros((8, 8, 3), np.uint8)
PNG = encode_image(PIXELS, {"parameters": TEXT}, ImageFormat.PNG)
PNG_HEAD, PNG_TEXT = PNG[:33], PNG[33:]


@pytest.mark.parametrize("form", ImageFormat)
def test_our_own_files_are_read(form: ImageFormat) -> None:
    assert infotext(encode_image(PIXELS, {"parameters": TEXT}, form)) == TEXT


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("international", [False, True], ids=["latin-1", "utf-8"])
def test_every_kind_of_png_text_is_read(packed: bool, international: bool) -> None:
    text = TEXT if international else "a caf\u00e9\nSteps: 10"
    info = PngInfo()
    info.add_text("Comment", "another")
    add = info.add_itxt if international else info.add_text
    add("parameters", text, zip=packed)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=info)
    assert infotext(buffer.getvalue()) == text


def test_nothing_is_searched_behind_a_damaged_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = 0
    is_sound = png._is_sound

    def counted(data: bytes, place: int, length: int) -> bool:
        nonlocal checked
        checked += 1
        return is_sound(data, place, length)

    monkeypatch.setattr(png, "_is_sound", counted)
    whole = encode_image(PIXELS, {"parameters": TEXT}, ImageFormat.PNG)
    damaged = b"\0\0\0\0aaaa\1\2\3\4" * 2000
    assert infotext(whole[:33] + damaged + whole[33:]) == ""
    assert checked == 1
    # As many again that are sound: a file of ours has few.
    sound = b"\0\0\0\0aaaa" + zlib.crc32(b"aaaa").to_bytes(4)
    assert infotext(whole[:33] + sound * 9000 + whole[33:]) == ""
    assert checked < 6000
    assert infotext(whole[:33] + sound * 900 + whole[33:]) == TEXT


def exif_of(form: ImageFormat) -> bytes:
    """The chunk or segment that holds the settings."""
    file = encode_image(PIXELS, {"parameters": TEXT}, form)
    if form is ImageFormat.WEBP:
        return file[file.index(b"EXIF") :]
    start = file.index(b"\xff\xe1")
    return file[start : start + 2 + int.from_bytes(file[start + 2 : start + 4])]


@pytest.mark.parametrize(
    ("start", "one", "parameters"),
    [
        (PNG_HEAD, b"\0\0\0\0PLTE\0\0\0\0", PNG_TEXT),
        (PNG_HEAD, b"\0\0\0\1IDATx\0\0\0\0", PNG_TEXT),
        (b"\xff\xd8", b"\xff\xe2\0\2", exif_of(ImageFormat.JPEG)),
        (b"RIFF\0\0\0\0WEBP", b"VP8 \0\0\0\0", exif_of(ImageFormat.WEBP)),
        (b"RIFF\0\0\0\0WEBP", b"ALPH\0\0\0\0", exif_of(ImageFormat.WEBP)),
    ],
)
def test_nothing_is_searched_behind_very_many_parts(
    start: bytes, one: bytes, parameters: bytes
) -> None:
    assert infotext(start + one * 9000 + parameters) == TEXT
    assert infotext(start + one * 11_000 + parameters) == ""


@pytest.mark.parametrize("between", [b"\xff" * 50_000, b"\xff\0" * 50_000, b"\xff\xd0" * 50_000])
def test_what_is_between_the_segments_of_a_jpeg_is_none_of_them(between: bytes) -> None:
    assert infotext(b"\xff\xd8\xff\xe2\0\2" + between + exif_of(ImageFormat.JPEG)) == TEXT


def test_a_picture_without_one_known_chunk_is_searched_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches: list[int] = []
    known = png._KNOWN

    class Counted:
        def finditer(self, data: bytes, start: int) -> Iterator[re.Match[bytes]]:
            searches.append(start)
            return known.finditer(data, start)

    monkeypatch.setattr(png, "_KNOWN", Counted())
    head = encode_image(PIXELS, {}, ImageFormat.PNG)[:33]
    with pytest.raises(png.PngProblem, match="IDAT"):
        png.read_png(head + b"\0\0\0\0aaaa\1\2\3\4" * 2000)
    assert len(searches) == 1


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_files_without_text_hold_none(form: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form)
    assert infotext(buffer.getvalue()) == ""


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as server.images.decode has it
@pytest.mark.parametrize("form", ImageFormat)
def test_no_cut_of_a_file_does_harm(form: ImageFormat) -> None:
    file = encode_image(PIXELS, {"parameters": TEXT}, form)
    for end in range(len(file)):
        assert infotext(file[:end]) in ("", TEXT) or form is not ImageFormat.PNG


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            'a cat,\nNegative: no\nNegative prompt: dog\ncat\nSteps: 10, Model: "a, b: \\"c\\"", '
            "Size: 320x64, Schedule type: SGM Uniform",
            {
                "Prompt": "a cat,\nNegative: no",
                "Negative prompt": "dog\ncat",
                "Steps": "10",
                "Model": 'a, b: "c"',
                "Size-1": "320",
                "Size-2": "64",
                "Schedule type": "SGM Uniform",
            },
        ),
        ("a cat: sits, yes", {"Prompt": "a cat: sits, yes", "Negative prompt": ""}),
        ('a: "b, cd: "\\", ef: "x', {"Prompt": 'a: "b, cd: "\\", ef: "x', "Negative prompt": ""}),
        ("Negative prompt: dog", {"Prompt": "", "Negative prompt": "dog"}),
        ("", {"Prompt": "", "Negative prompt": ""}),
    ],
)
def test_settings_are_read_by_their_names(text: str, found: dict[str, str]) -> None:
    assert settings_in(text) == found


@pytest.mark.parametrize("piece", ['ab:"\\"', "ab: ", 'a:"b,', "a" * 70 + " ", '"'])
def test_a_strangers_text_is_read_at_once(piece: str) -> None:
    assert settings_in(piece * (2**20 // len(piece)))["Prompt"] is not None
