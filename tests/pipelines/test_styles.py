"""The 17 presets of the contract."""

from __future__ import annotations

import pytest

from pipelines.prompt.styles import STYLES, apply_style

CONTRACT = [
    "3d-model",
    "analog-film",
    "anime",
    "cinematic",
    "comic-book",
    "digital-art",
    "enhance",
    "fantasy-art",
    "isometric",
    "line-art",
    "low-poly",
    "modeling-compound",
    "neon-punk",
    "origami",
    "photographic",
    "pixel-art",
    "tile-texture",
]


def test_every_preset_of_the_contract_and_no_other() -> None:
    assert sorted(STYLES) == sorted(CONTRACT)
    assert all(name == style.name for name, style in STYLES.items())


def test_templates_are_distinct_short_and_hold_the_prompt_once() -> None:
    prompts = {style.prompt for style in STYLES.values()}
    negatives = {style.negative_prompt for style in STYLES.values()}
    assert len(prompts) == len(negatives) == 17
    for style in STYLES.values():
        assert style.prompt.count("{prompt}") == 1
        assert len(style.prompt.split()) < 25
        assert style.negative_prompt


@pytest.mark.parametrize("preset", CONTRACT)
@pytest.mark.parametrize("prompt", ["a red cat", "{0} {x} {prompt} {{}}", "100 % \\ {", "日本"])
def test_the_prompt_stays_whole(preset: str, prompt: str) -> None:
    styled = apply_style(preset, prompt, "rain")
    before, after = STYLES[preset].prompt.split("{prompt}")
    assert styled.prompt == before + prompt + after
    assert styled.negative_prompt == f"rain, {STYLES[preset].negative_prompt}"
    assert styled.tile == (preset == "tile-texture")


def test_no_preset_changes_nothing() -> None:
    styled = apply_style(None, "a cat", "rain")
    assert (styled.prompt, styled.negative_prompt, styled.tile) == ("a cat", "rain", False)


def test_no_negative_prompt_of_the_caller() -> None:
    assert apply_style("anime", "a cat").negative_prompt == STYLES["anime"].negative_prompt


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="cubism"):
        apply_style("cubism", "a cat")
