"""The linear map from latents to a small picture."""

from __future__ import annotations

import numpy as np
import torch

from models.bundle import ModelBundle
from pipelines.request import Pixels
from pipelines.vae.encode import encode_image
from pipelines.vae.preview import LatentToRgb


def test_a_preview_looks_like_the_picture(embedded: ModelBundle, picture: Pixels) -> None:
    with torch.inference_mode():
        latents = encode_image(embedded, picture, tile=False).mean * embedded.scaling_factor
        preview = LatentToRgb.fit(embedded).picture(latents)
    assert preview.shape == (16, 16, 3)
    small = picture.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    assert np.abs(preview - small).mean() < 25
    flat = np.abs(preview - small.mean(axis=(0, 1))).mean()
    assert np.abs(preview - small).mean() < flat / 2
