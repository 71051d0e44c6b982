from __future__ import annotations

import re
import sys
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.request import CONTRACT_SAMPLERS, ClipGuidancePreset, Sampler
from server.img2img.form import (
    FILE_FIELDS,
    NOT_BLANK,
    STYLE_PRESETS,
    TEXT_FIELDS,
    ImageToImageForm,
    ResizeMode,
    form_request_body,
    parse_form,
)


def accept(**texts: str) -> ImageToImageForm:
    form, problems = parse_form({"prompt": "a cat", **texts})
    assert problems == []
    assert form is not None
    return form


def refuse(texts: Mapping[str, str]) -> list[str]:
    form, problems = parse_form(texts)
    assert form is None
    assert problems
    return problems


def test_defaults_are_the_contracts() -> None:
    form = accept()
    assert form.image_strength == 0.35
    assert form.cfg_scale == 7
    assert form.steps == 30
    assert form.seed == 0
    assert form.clip_guidance_preset is ClipGuidancePreset.NONE
    assert form.style_preset is None
    assert (form.width, form.height) == (None, None)
    assert form.negative_prompt == ""
    assert form.resize_mode is ResizeMode.CROP


def test_the_contracts_names_are_all_there() -> None:
    contract = (
        "3d-model analog-film anime cinematic comic-book digital-art enhance fantasy-art isometric "
        "line-art low-poly modeling-compound neon-punk origami photographic pixel-art tile-texture"
    )
    assert sorted(STYLE_PRESETS) == sorted(contract.split())
    for name in STYLE_PRESETS:
        assert accept(style_preset=name).style_preset == name
    for sampler in CONTRACT_SAMPLERS:
        assert accept(sampler=sampler.value).chosen_sampler is sampler
    assert len(CONTRACT_SAMPLERS) == 10
    for sampler in set(Sampler) - set(CONTRACT_SAMPLERS):
        assert refuse({"prompt": "a", "sampler": sampler.value})[0].startswith(
            f"sampler: {sampler} is not one of"
        )
    for preset in ClipGuidancePreset:
        assert accept(clip_guidance_preset=preset.value).clip_guidance_preset is preset


def test_sampler_left_out() -> None:
    assert accept().chosen_sampler is Sampler.K_DPMPP_2M
    guided = accept(clip_guidance_preset="FAST_BLUE").chosen_sampler
    assert guided is Sampler.K_DPMPP_2S_ANCESTRAL


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("steps", "20", 20),
        ("steps", "20.0", 20),
        ("steps", " 20 ", 20),
        ("steps", "+20", 20),
        ("steps", "2e1", 20),
        ("steps", "10", 10),
        ("steps", "50", 50),
        ("width", "320", 320),
        ("width", "1536", 1536),
        ("height", "384.0", 384),
        ("cfg_scale", "0", 0.0),
        ("cfg_scale", "35", 35.0),
        ("cfg_scale", "7.5", 7.5),
        ("cfg_scale", ".5", 0.5),
        ("cfg_scale", "1.", 1.0),
        ("image_strength", "1e-05", 1e-05),
        ("image_strength", "-0", 0.0),
        ("image_strength", "1.0", 1.0),
        ("image_strength", f"{0.1:.70f}", 0.1),
        ("image_strength", "0." + "9" * 30, 1 - 2**-53),
        ("image_strength", "0." + "9" * 300, 1 - 2**-53),
        ("seed", "4294967295", 2**32 - 1),
        ("seed", "0" * 80 + "7", 7),
    ],
)
def test_numbers_that_are_taken(field: str, text: str, value: float) -> None:
    assert getattr(accept(**{field: text}), field) == value


def test_zero_has_no_sign() -> None:
    assert str(accept(cfg_scale="-0").cfg_scale) == "0.0"


@pytest.mark.parametrize(
    ("field", "text", "problem"),
    [
        ("cfg_scale", "40", "cfg_scale: 40 is not in 0..35"),
        ("cfg_scale", "35.01", "cfg_scale: 35.01 is not in 0..35"),
        ("cfg_scale", "-1", "cfg_scale: -1 is not in 0..35"),
        ("cfg_scale", "nan", "cfg_scale: nan is not a number in 0..35"),
        ("cfg_scale", "inf", "cfg_scale: inf is not a number in 0..35"),
        ("cfg_scale", "-Infinity", "cfg_scale: -Infinity is not a number in 0..35"),
        ("cfg_scale", "1e999", "cfg_scale: 1e999 is not in 0..35"),
        ("seed", "1e9999", "seed: 1e9999 is not in 0..4294967295"),
        ("cfg_scale", "1_0", "cfg_scale: 1_0 is not a number in 0..35"),
        ("cfg_scale", "0x10", "cfg_scale: 0x10 is not a number in 0..35"),
        ("cfg_scale", "7,5", "cfg_scale: 7,5 is not a number in 0..35"),
        ("image_strength", "1.0000000001", "image_strength: 1.0000000001 is not in 0..1"),
        ("steps", "abc", "steps: abc is not a whole number in 10..50"),
        ("steps", "9", "steps: 9 is not in 10..50"),
        ("steps", "51", "steps: 51 is not in 10..50"),
        ("steps", "20.5", "steps: 20.5 is not a whole number in 10..50"),
        ("steps", "1_0", "steps: 1_0 is not a whole number in 10..50"),
        ("steps", "٢٠", "steps: ٢٠ is not a whole number in 10..50"),
        ("steps", "2 0", "steps: 2 0 is not a whole number in 10..50"),
        ("steps", "True", "steps: True is not a whole number in 10..50"),
        ("width", "500", "width: 500 is not a multiple of 64 in 320..1536"),
        ("width", "256", "width: 256 is not in 320..1536"),
        ("height", "1600", "height: 1600 is not in 320..1536"),
        ("seed", "-1", "seed: -1 is not in 0..4294967295"),
        ("seed", "4294967296", "seed: 4294967296 is not in 0..4294967295"),
        ("resize_mode", "fill", "resize_mode: fill is not one of crop, stretch, pad"),
    ],
)
def test_values_that_are_refused(field: str, text: str, problem: str) -> None:
    assert refuse({"prompt": "a cat", field: text}) == [problem]


@pytest.mark.parametrize("field", ["seed", "steps", "cfg_scale", "width"])
def test_huge_numbers_are_refused_shortly(field: str) -> None:
    (problem,) = refuse({"prompt": "a cat", field: "9" * 50_000})
    assert problem.startswith(f"{field}: 999")
    assert len(problem) < 200


@pytest.mark.parametrize("field", ["sampler", "style_preset", "clip_guidance_preset"])
@pytest.mark.parametrize("text", ["nonsense", "ddim", "ANIME", "none"])
def test_unknown_names_are_refused_with_the_known_ones(field: str, text: str) -> None:
    (problem,) = refuse({"prompt": "a cat", field: text})
    known = {"sampler": "K_LMS", "style_preset": "anime", "clip_guidance_preset": "FAST_BLUE"}
    assert problem.startswith(f"{field}: {text} is not one of ")
    assert known[field] in problem


def test_every_bad_field_is_named_at_once() -> None:
    problems = refuse({"steps": "5", "cfg_scale": "40", "sampler": "X", "width": "1"})
    assert [problem.split(":")[0] for problem in problems] == [
        "prompt",
        "width",
        "cfg_scale",
        "sampler",
        "steps",
    ]


def test_prompt() -> None:
    assert accept(prompt="  a cat \n").prompt == "a cat"
    assert len(accept(prompt="x" * 2000 + "   ").prompt) == 2000
    assert refuse({"prompt": "x" * 2001}) == ["prompt: 2001 characters is over 2000"]
    assert refuse({}) == ["prompt: is required"]
    assert refuse({"prompt": "  \t\n"}) == ["prompt: is required"]


ECMASCRIPT_BLANKS = set("\t\n\v\f\r \xa0\ufeff\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(code) for code in range(0x2000, 0x200B)
}
"""What `\\s` is to JSON Schema, whose patterns are ECMA-262's."""


@pytest.mark.parametrize("blank", [c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()])
def test_the_document_says_that_a_blank_prompt_is_none(blank: str) -> None:
    assert refuse({"prompt": blank}) == ["prompt: is required"]
    named = NOT_BLANK.replace(r"\s", "")
    assert blank in ECMASCRIPT_BLANKS or not re.search(named, blank)
    assert not re.search(NOT_BLANK, blank)


def test_blank_is_left_out() -> None:
    blank = dict.fromkeys(ImageToImageForm.model_fields, "  ") | {"prompt": "a cat"}
    assert parse_form(blank) == parse_form({"prompt": "a cat"})


def test_a_random_seed_is_in_range_and_not_always_the_same() -> None:
    seeds = {accept().chosen_seed() for _ in range(50)}
    assert len(seeds) > 40
    assert all(1 <= seed < 2**32 for seed in seeds)
    assert accept(seed="7").chosen_seed() == 7


@given(st.dictionaries(st.sampled_from(sorted(ImageToImageForm.model_fields)), st.text()))
def test_any_text_gives_a_form_or_problems(texts: dict[str, str]) -> None:
    form, problems = parse_form(texts)
    assert (form is None) == bool(problems)
    for problem in problems:
        assert problem.split(":")[0] in ImageToImageForm.model_fields


def test_the_described_form_is_the_checked_one() -> None:
    body = form_request_body()
    schema = body["content"]["multipart/form-data"]["schema"]
    properties = schema["properties"]
    assert set(properties) == FILE_FIELDS.union(TEXT_FIELDS)
    assert schema["required"] == ["init_image", "prompt"]
    assert properties["init_image"]["format"] == "binary"
    for name, shown in properties.items():
        assert shown["description"], name
        if "default" in shown:
            assert getattr(accept(), name) == shown["default"], name
        for limit in {"minimum", "maximum"} & set(shown):
            at_limit = accept(**{name: str(shown[limit])})
            assert getattr(at_limit, name) == shown[limit]
            step = -1 if limit == "minimum" else 1
            refuse({"prompt": "a cat", name: str(shown[limit] + step)})
        for value in shown.get("enum", ()):
            assert getattr(accept(**{name: value}), name) == value
