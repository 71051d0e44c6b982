"""CLIP guidance and weighted prompts as a client of the contract sees them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.conftest import QUICK, Answer, Client

STILL = {**QUICK, "image_strength": 0.8, "sampler": "K_EULER", "seed": 11}
"""Two evaluations."""


@pytest.fixture(scope="module")
def plain(client: Client, small_picture: bytes) -> Answer:
    return client.ask(small_picture, **STILL)


@pytest.mark.parametrize("preset", ["FAST_BLUE", "SIMPLE", "SLOW", "SLOWEST"])
def test_a_preset_changes_the_picture_and_its_settings_say_so(
    client: Client, small_picture: bytes, plain: Answer, preset: str
) -> None:
    guided = client.ask(small_picture, clip_guidance_preset=preset, **STILL)
    assert f"CLIP guidance: {preset}" in guided.image.text["parameters"]  # type: ignore[attr-defined]
    assert not np.array_equal(np.asarray(plain.image), np.asarray(guided.image))


def test_a_weight_changes_the_picture(client: Client, small_picture: bytes, plain: Answer) -> None:
    literal, heavy = (
        client.ask(small_picture, prompt=prompt, **STILL).image
        for prompt in ("a (blue:1) circle", "a (blue:1.8) circle")
    )
    assert not np.array_equal(np.asarray(plain.image), np.asarray(heavy))
    assert np.array_equal(np.asarray(plain.image), np.asarray(literal))


def test_the_png_says_that_it_was_generated(plain: Answer) -> None:
    text = plain.image.text  # type: ignore[attr-defined]
    assert text["Software"].startswith("img2img-server ")
    assert text["DigitalSourceType"].endswith("compositeWithTrainedAlgorithmicMedia")
    assert "Model: " in text["parameters"]
