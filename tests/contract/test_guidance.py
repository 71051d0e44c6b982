"""CLIP guidance and weighted prompts as a client of the contract sees them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.conftest import QUICK, Client

STILL = {**QUICK, "image_strength": 0.7, "sampler": "K_EULER", "seed": 11}


@pytest.mark.parametrize("preset", ["FAST_BLUE", "SIMPLE", "SLOW", "SLOWEST"])
def test_a_preset_changes_the_picture_and_its_settings_say_so(
    client: Client, small_picture: bytes, preset: str
) -> None:
    plain = client.ask(small_picture, **STILL)
    guided = client.ask(small_picture, clip_guidance_preset=preset, **STILL)
    assert f"CLIP guidance: {preset}" in guided.image.text["parameters"]  # type: ignore[attr-defined]
    assert not np.array_equal(np.asarray(plain.image), np.asarray(guided.image))


def test_a_weight_changes_the_picture(client: Client, small_picture: bytes) -> None:
    plain, literal, heavy = (
        client.ask(small_picture, prompt=prompt, **STILL).image
        for prompt in ("a blue circle", "a (blue:1) circle", "a (blue:1.8) circle")
    )
    assert not np.array_equal(np.asarray(plain), np.asarray(heavy))
    assert np.array_equal(np.asarray(plain), np.asarray(literal))


def test_the_png_says_that_it_was_generated(client: Client, small_picture: bytes) -> None:
    text = client.ask(small_picture, **QUICK).image.text  # type: ignore[attr-defined]
    assert text["Software"].startswith("img2img-server ")
    assert text["DigitalSourceType"].endswith("compositeWithTrainedAlgorithmicMedia")
    assert "Model: " in text["parameters"]
