"""What of a mask's file is made anew: by its light, its dark, its transparency."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from server.images.decode import decode_with_opacity
from server.images.masks import MaskOptions, MaskReads, selection
from tests.server.apis import PICTURE, SIDE, Apis
from tests.server.conftest import PATH, MakeClient
from tests.server.pictures import file_of
from tests.server.stub_engine import StubEngine

LEVELS = np.array([[0, 64, 192, 255]])
"""Greys side by side, each with every opacity below it in `painted`."""


def painted(mode: str) -> Image.Image:
    """Return four greys side by side, from opaque at the top to transparent in the last row."""
    light = np.repeat(LEVELS, 4, 0).astype(np.uint8)
    alpha = np.repeat(LEVELS[:, ::-1].T, 4, 1).astype(np.uint8)
    image = Image.fromarray(np.dstack([light, light, light, alpha]))
    if mode != "P":
        return image.convert(mode)
    palette = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    palette.putpalette(np.repeat(light.ravel(), 3).tobytes())
    palette.info["transparency"] = alpha.tobytes()
    return palette


LIGHT, OPACITY = np.repeat(LEVELS, 4, 0), np.repeat(LEVELS[:, ::-1].T, 4, 1)
WANTED: dict[MaskReads, npt.NDArray[np.int_]] = {
    MaskReads.LIGHT: LIGHT * OPACITY // 255,
    MaskReads.DARK: (255 - LIGHT) * OPACITY // 255,
    MaskReads.TRANSPARENT: 255 - OPACITY,
    MaskReads.OPAQUE_OR_LIGHT: np.where(OPACITY > 128, 255, 0),
}


@pytest.mark.parametrize("reads", MaskReads)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_unpainted(mode: str, reads: MaskReads) -> None:
    options = {"transparency": painted(mode).info["transparency"]} if mode == "P" else {}
    own = decode_with_opacity(file_of(painted(mode), **options), 1000)
    got = np.asarray(selection(own, MaskOptions(b"", reads), (4, 4)))
    assert np.abs(got - WANTED[reads]).max() <= 2
    assert np.array_equal(got[OPACITY % 255 == 0], WANTED[reads][OPACITY % 255 == 0])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("source", ["", "MASK_IMAGE_WHITE", "MASK_IMAGE_BLACK"])
def test_a_stroke_on_a_transparent_layer(
    make_client: MakeClient, engine: StubEngine, mode: str, source: str
) -> None:
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:, SIDE // 2 :] = 255
    light = np.full_like(alpha, 0 if source == "MASK_IMAGE_BLACK" else 255)
    layer = Image.fromarray(np.dstack([light, light, light, alpha]))
    layer = layer.quantize() if mode == "P" else layer.convert(mode)
    apis = Apis(make_client())
    name = "mask_image" if source else "mask"
    files = {"init_image": ("a.png", PICTURE), name: ("m.png", file_of(layer))}
    if source:
        answer = apis.stability(path="/image-to-image/masking", files=files, mask_source=source)
    else:
        answer = apis.client.post(PATH, data={"prompt": "a cat"}, files=files)
    assert answer.status_code == 200, answer.text
    got = engine.last_request.mask
    assert got is not None
    assert np.array_equal(got, alpha)
