"""Small pictures of unfinished ones: the linear map, and one that cannot be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.bundle import ModelBundle
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import GenerationRequest, Pixels
from pipelines.vae.encode import encode_image
from pipelines.vae.preview import LatentToRgb


def test_a_preview_looks_like_the_picture(embedded: ModelBundle, picture: Pixels) -> None:
    with torch.inference_mode():
        latents = encode_image(embedded, picture, tile=False).mean * embedded.scaling_factor
        preview = LatentToRgb.fit(embedded).begin(latents)()
    assert preview.shape == (16, 16, 3)
    small = picture.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    assert np.abs(preview - small).mean() < 25
    flat = np.abs(preview - small.mean(axis=(0, 1))).mean()
    assert np.abs(preview - small).mean() < flat / 2


@pytest.mark.parametrize("begins", [False, True])
def test_a_preview_that_cannot_be_drawn_changes_no_picture(
    tiny: ModelBundle, picture: Pixels, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    """It fails as its step is launched, or as that has ended."""
    tried = 0

    def fail(*_: Any) -> None:
        nonlocal tried
        tried += 1
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(LatentToRgb, "begin", (lambda *_: fail) if begins else fail)
    engine = Engine(tiny, EngineConfig(warm_up=False), guessed_costs())
    engine.start()
    made = [
        engine.submit(GenerationRequest(picture, "a cat", steps=8, previews=previews)).wait(60)
        for previews in (True, False)
    ]
    counts = engine.steps
    engine.drain(grace=5)
    assert np.array_equal(made[0].image, made[1].image)
    assert counts.evaluations == made[0].evaluations * 2
    assert tried == 1
