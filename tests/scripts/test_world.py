"""The drawn world: what it holds, that it is seeded, that its words fit its pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.embedded import vocabulary as demo
from pipelines.prompt.styles import STYLES as TEMPLATES
from scripts.training.world.captions import caption, dropped_caption, plain_caption
from scripts.training.world.layers import Layers
from scripts.training.world.looks import draw
from scripts.training.world.scene import (
    BACKGROUNDS,
    COLOURS,
    FRAMINGS,
    HELD_OUT,
    OBJECTS,
    STYLES,
    Scene,
    Thing,
    is_held_out,
    sample_scene,
)


def lone(kind: str, colour: str, background: str, style: str | None = None) -> Scene:
    return Scene((Thing(kind, colour, 0.7, 0.5, 0.5),), background, style, 128, 128, seed=3)


def test_the_world_is_as_large_as_it_should_be() -> None:
    assert len(OBJECTS) >= 12
    assert {"house", "tree", "flower", "fish", "boat", "car", "cat", "star"} <= set(OBJECTS)
    assert len(COLOURS) == 10
    assert len(BACKGROUNDS) == 8
    assert len(STYLES) == 17
    assert set(STYLES) == set(TEMPLATES)


def test_the_same_seed_draws_the_same_set() -> None:
    def pictures(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [draw(sample_scene(rng, 96, 96)) for _ in range(6)]

    assert all(np.array_equal(a, b) for a, b in zip(pictures(4), pictures(4), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(pictures(4), pictures(5), strict=True))


@pytest.mark.parametrize("kind", OBJECTS)
def test_every_thing_is_seen_and_of_its_colour(kind: str) -> None:
    for colour, rgb in COLOURS.items():
        scene = lone(kind, colour, "plain")
        picture = draw(scene).astype(float)
        inside = np.asarray(Layers(scene).mask) > 200
        assert 0.06 < inside.mean() < 0.7
        # The commonest way to be near: among the ten colours, most pixels inside are nearest to it.
        distances = {
            name: np.linalg.norm(picture[inside] - np.array(other), axis=-1)
            for name, other in COLOURS.items()
        }
        names = list(distances)
        nearest = np.argmin(np.stack([distances[name] for name in names]), axis=0)
        share = (nearest == names.index(colour)).mean()
        assert share > 0.35, (kind, colour, share)
        assert rgb == COLOURS[colour]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_differ_from_each_other(background: str) -> None:
    picture = draw(lone("circle", "red", background)).astype(float)
    for other in BACKGROUNDS:
        if other != background:
            difference = np.abs(picture - draw(lone("circle", "red", other))).mean()
            assert difference > 8, (background, other)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_another_look(style: str) -> None:
    scenes = [lone("house", "blue", "grass"), lone("cat", "red", "snow")]
    for scene in scenes:
        picture = draw(replace(scene, style=style)).astype(float)
        assert picture.shape == (128, 128, 3)
        for other in (None, *STYLES):
            if other != style:
                difference = np.abs(picture - draw(replace(scene, style=other))).mean()
                assert difference > 4, (style, other)


def test_looks_that_are_easy_to_measure() -> None:
    scene = lone("star", "green", "plain")
    line = draw(replace(scene, style="line-art"))
    assert (line.min(axis=2) > 250).mean() > 0.6  # mostly blank paper
    neon = draw(replace(scene, style="neon-punk"))
    assert (neon.mean(axis=2) < 80).mean() > 0.5  # mostly dark
    cinematic = draw(replace(scene, style="cinematic"))
    assert cinematic[:10].max() < 16  # a bar
    tile = draw(replace(scene, style="tile-texture")).astype(float)
    across = np.abs(tile[:, 0] - tile[:, -1]).mean()
    inside = np.abs(np.diff(tile, axis=1)).mean()
    assert across < 3 * inside + 2  # opposite edges meet


@pytest.mark.parametrize("size", [(64, 64), (192, 128), (128, 320), (384, 320)])
def test_any_size_and_shape(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        scene = sample_scene(rng, *size)
        picture = draw(scene)
        assert picture.shape == (size[1], size[0], 3)
        assert picture.dtype == np.uint8
        short = min(size)
        for thing in scene.things:
            half = thing.size * short / 2
            assert thing.x * size[0] - half >= -2 and thing.x * size[0] + half <= size[0] + 2
            assert thing.y * size[1] - half >= -2 and thing.y * size[1] + half <= size[1] + 2


def test_training_never_draws_what_is_held_out() -> None:
    assert 0.04 < len(HELD_OUT) / (len(OBJECTS) * len(COLOURS) * len(BACKGROUNDS)) < 0.12
    rng = np.random.default_rng(2)
    for _ in range(2000):
        scene = sample_scene(rng, 128, 128)
        for thing in scene.things:
            assert not is_held_out(thing.kind, thing.colour, scene.background)
    for _ in range(100):
        scene = sample_scene(rng, 128, 128, split="held_out")
        first = scene.things[0]
        assert is_held_out(first.kind, first.colour, scene.background)


def test_scenes_vary_as_they_should() -> None:
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng, 128, 128) for _ in range(1500)]
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}
    assert {scene.style for scene in scenes} == {None, *STYLES}
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {thing.kind for scene in scenes for thing in scene.things} == set(OBJECTS)
    sizes = [scene.things[0].size for scene in scenes if len(scene.things) == 1]
    assert min(sizes) < FRAMINGS["small"][1] and max(sizes) > FRAMINGS["close"][0]
    assert 0.4 < np.mean([scene.style is not None for scene in scenes]) < 0.6


def test_captions_name_every_thing_and_vary() -> None:
    rng = np.random.default_rng(4)
    texts = set()
    for _ in range(300):
        scene = sample_scene(rng, 128, 128)
        for text in (caption(scene, rng), plain_caption(scene)):
            for thing in scene.things:
                assert f"{thing.colour} {thing.kind}" in text
        texts.add(caption(lone("cat", "red", "grass"), rng))
    assert len(texts) > 10


def test_styled_captions_speak_in_the_words_of_the_template() -> None:
    rng = np.random.default_rng(5)
    for style in STYLES:
        scene = lone("cat", "red", "grass", style)
        words = set(TEMPLATES[style].prompt.replace(",", " ").split()) | {
            style,
            style.split("-")[0],
        }
        heard = [set(caption(scene, rng).replace(",", " ").split()) & words for _ in range(10)]
        assert all(heard)
        template = TEMPLATES[style].prompt.partition("{prompt}")[2]
        assert any(template in caption(scene, rng) for _ in range(30))


@pytest.mark.parametrize("style", [None, *STYLES])
def test_a_scene_alone_decides_its_picture(style: str | None) -> None:
    scene = replace(sample_scene(np.random.default_rng(6), 96, 64, count=2), style=style)
    assert np.array_equal(draw(scene), draw(scene))


def test_a_scene_s_seed_decides_small_details() -> None:
    scene = lone("cat", "red", "sky")
    assert not np.array_equal(draw(scene), draw(replace(scene, seed=scene.seed + 1)))


@pytest.mark.parametrize("style", [None, "low-poly", "tile-texture"])
def test_the_largest_pictures_can_be_drawn(style: str | None) -> None:
    scene = replace(lone("boat", "red", "ocean", style), width=1536, height=320)
    assert draw(scene).shape == (320, 1536, 3)


def test_a_side_too_small_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="8 x 64"):
        draw(replace(lone("cat", "red", "grass"), width=8, height=64))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ((0.8, 0.5), "a red house next to a green tree on a grass background"),
        ((0.3, 0.9), "a red house above a green tree on a grass background"),
        ((0.3, 0.1), "a red house below a green tree on a grass background"),
    ],
)
def test_the_canonical_caption(second: tuple[float, float], words: str) -> None:
    things = (Thing("house", "red", 0.3, 0.3, 0.5), Thing("tree", "green", 0.3, *second))
    assert plain_caption(Scene(things, "grass", "anime", 128, 128, 1)) == words


def test_a_relation_in_a_caption_is_true() -> None:
    rng = np.random.default_rng(7)
    heard = set()
    for _ in range(600):
        scene = sample_scene(rng, 128, 128, count=2)
        first, second = scene.things
        text = caption(scene, rng)
        truths = {
            "to the left of": first.x < second.x,
            "to the right of": first.x > second.x,
            " above ": first.y < second.y,
            " below ": first.y > second.y,
        }
        for relation, true in truths.items():
            if relation in text:
                assert true, (text, scene)
                heard.add(relation)
    assert heard == {"to the left of", "to the right of", " above ", " below "}


def test_a_dropped_caption_never_names_the_scene() -> None:
    rng = np.random.default_rng(8)
    scene = lone("cat", "red", "grass", "anime")
    texts = [dropped_caption(scene, rng) for _ in range(300)]
    assert 0.5 < np.mean([text == "" for text in texts]) < 0.9
    assert TEMPLATES["anime"].negative_prompt not in texts
    assert {text for text in texts if text} <= {s.negative_prompt for s in TEMPLATES.values()}


def test_the_demo_notice_names_the_words_of_this_world() -> None:
    assert tuple(OBJECTS) == demo.THINGS
    assert tuple(COLOURS) == demo.COLOURS
    assert demo.BACKGROUNDS == BACKGROUNDS
    notice = demo.demo_notice("embedded")
    assert notice is not None
    assert all(word in notice for word in (*OBJECTS, *COLOURS, *BACKGROUNDS))
    assert demo.demo_notice("someone/else") is None
