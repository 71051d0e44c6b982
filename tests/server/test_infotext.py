"""The settings that a file holds as text, whatever wrote it, and files that hold none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from server.images.encode import ImageFormat, encode_image
from server.images.infotext import infotext

TEXT = "a caf\u00e9, \u732b\nSteps: 10, Sampler: Euler, Seed: 7"
PIXELS = np.zeros((8, 8, 3), np.uint8)


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
