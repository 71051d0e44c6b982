"""What is kept and what is made are mixed once, by the mask as it was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines.request import Mask, Pixels
from server.images import masks
from server.images.fit import ResizeMode, fit_image
from server.images.masks import MaskOptions
from server.img2img.fitting import FittedImages, fit_with_mask
from server.img2img.images_request import ImagesRequest

SIZES = [(512, 512), (600, 600), (512, 384), (333, 640), (1600, 900)]
SHAPES: dict[str, dict[str, Any]] = {
    "as sent": {"keep_size": True},
    "as made": {},
    "asked": {"width": 384, "height": 448},
    "resized": {"width": 384, "height": 448, "output_size": (400, 460)},
}


def opaque(pixels: Pixels) -> Pixels:
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def soft_mask(size: tuple[int, int], value: int) -> Pixels:
    """An image whose middle is light."""
    width, height = size
    mask = Image.new("RGB", size, 0)
    box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    ImageDraw.Draw(mask).rectangle(box, fill=(value, value, value))
    return opaque(np.array(mask))


def fitted(own: Pixels, mask: Pixels, options: MaskOptions, **fields: Any) -> FittedImages:
    asked = ImagesRequest("", upload=b"", mask=options, **fields)
    return fit_with_mask(asked, own, mask, ())


def mixed(kept: Pixels, made: Pixels, mask: Mask) -> Pixels:
    weight = mask[..., None].astype(np.float64) / 255
    return np.rint(weight * made + (1 - weight) * kept).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("blur", "value", "only_masked"), [(4, 255, False), (0, 128, False), (4, 255, True)]
)
def test_white_made_on_black_gives_the_mask(
    size: tuple[int, int], shape: str, blur: int, value: int, only_masked: bool
) -> None:
    own = opaque(np.zeros((size[1], size[0], 3), np.uint8))
    mask = soft_mask(size, value)
    options = MaskOptions(b"", blur=blur, only_masked=only_masked)
    fit = fitted(own, mask, options, **SHAPES[shape])
    got = fit.finishing.apply(np.full_like(fit.image, 255))
    want = masks.selection(mask, options, size)
    answered = (got.shape[1], got.shape[0])
    if only_masked:
        want = want.resize(answered, Image.Resampling.LANCZOS)
    else:
        want = fit_image(want, *answered, ResizeMode.CROP)
    assert np.abs(got[..., 0].astype(int) - np.array(want)).max() <= 1
    assert {0, value} <= set(np.unique(got).tolist())


@pytest.mark.parametrize("blur", [0, 4, 16])
@pytest.mark.parametrize("only_masked", [True, False])
def test_a_filled_area_leaves_no_halo_in_what_is_kept(blur: int, only_masked: bool) -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[..., 2] = 255
    stripes[:, (np.arange(512) % 8) < 4, 0] = 255
    mask = soft_mask((512, 512), 255)
    options = MaskOptions(b"", blur=blur, only_masked=only_masked, fill=True)
    fit = fitted(opaque(stripes), mask, options)
    made = np.zeros_like(fit.image)
    made[..., 1] = 255
    got = fit.finishing.apply(made)
    want = mixed(
        stripes,
        np.full_like(stripes, (0, 255, 0)),
        np.array(masks.selection(mask, options, (512, 512))),
    )
    assert np.abs(got.astype(int) - want).max() <= 1
