"""What schemathesis is told of the contract: what a picture is, so that it also sends good ones."""

from __future__ import annotations

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def _png(size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


_sides = st.integers(1, 64)
# Bright: one may come as a mask, and a mask that selects nothing is refused, as no schema can say.
_colours = st.tuples(*(st.integers(160, 255) for _ in range(3)))
pictures = st.builds(_png, st.tuples(_sides, _sides), _colours)

schemathesis.openapi.format("binary", pictures)
