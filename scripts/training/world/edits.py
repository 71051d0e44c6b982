"""What a scene may have been before somebody asked for it: the same layout, other attributes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scripts.training.world.scene import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    STYLES,
    Scene,
    Thing,
    is_held_out,
)

ATTRIBUTES = ("colour", "kind", "background", "style")
# How often an edit changes one, two or three of the attributes.
CHANGES = (0.65, 0.25, 0.10)


def earlier_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene that differs from ``scene`` in one to three attributes; none is a held-out one.

    Colours and kinds change for one of its things; places, sizes and the seed of small details
    stay.
    """
    count = 1 + int(rng.choice(len(CHANGES), p=CHANGES))
    chosen = rng.choice(len(ATTRIBUTES), size=count, replace=False)
    changed = [ATTRIBUTES[int(i)] for i in chosen]
    while True:
        made = scene
        for attribute in changed:
            made = _with_another(made, attribute, rng)
        if made != scene and not any(
            is_held_out(thing.kind, thing.colour, made.background) for thing in made.things
        ):
            return made


def _with_another(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    if attribute == "background":
        return replace(scene, background=str(rng.choice(BACKGROUNDS)))
    if attribute == "style":
        # A styled picture is mostly made of a plain one.
        plain = scene.style is not None and rng.random() < 0.7
        return replace(scene, style=None if plain else str(rng.choice(STYLES)))
    index = int(rng.integers(len(scene.things)))
    things: list[Thing] = list(scene.things)
    if attribute == "colour":
        things[index] = replace(things[index], colour=str(rng.choice(list(COLOURS))))
    else:
        things[index] = replace(things[index], kind=str(rng.choice(OBJECTS)))
    return replace(scene, things=tuple(things))
