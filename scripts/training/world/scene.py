"""The world the embedded model knows: things of a kind and a colour, on a background, in a style.

`sample_scene` draws a scene from a random generator, `looks.draw` paints it. A scene says
all there is to know of its picture: the same scene always gives the same pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.embedded import vocabulary
from pipelines.prompt.styles import STYLES as STYLE_PRESETS

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 38),
    "orange": (245, 136, 24),
    "yellow": (250, 214, 40),
    "green": (44, 150, 62),
    "blue": (36, 84, 214),
    "purple": (134, 58, 184),
    "pink": (246, 138, 184),
    "brown": (128, 78, 42),
    "white": (246, 246, 246),
    "black": (40, 40, 45),
}
BACKGROUNDS = vocabulary.BACKGROUNDS
OBJECTS = vocabulary.THINGS
STYLES: tuple[str, ...] = tuple(STYLE_PRESETS)

HELD_OUT_PERCENT = 8
Split = Literal["train", "held_out", "any"]
Framing = Literal["any", "close", "medium", "small"]
# Size of a lone thing, as a fraction of the shorter side.
FRAMINGS: dict[str, tuple[float, float]] = {
    "close": (0.74, 0.92),
    "medium": (0.5, 0.74),
    "small": (0.3, 0.46),
}
# Kinds that stand on the ground where a background has one; the others may float.
GROUNDED = frozenset({"house", "tree", "flower", "boat", "car", "cat", "mountain"})


@dataclass(frozen=True)
class Thing:
    """One object: `size` is its box as a fraction of the shorter side, `x` and `y` its centre as
    fractions of width and height."""

    kind: str
    colour: str
    size: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """All that decides a picture. `style` is a preset's name or None for the plain drawing; width
    and height are in pixels; `seed` decides small details such as where the clouds are."""

    things: tuple[Thing, ...]
    background: str
    style: str | None
    width: int
    height: int
    seed: int


def is_held_out(kind: str, colour: str, background: str) -> bool:
    """Whether training never draws this combination: 8 in 100 of them, by a hash of the words."""
    digest = hashlib.blake2b(f"{kind}|{colour}|{background}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


HELD_OUT: tuple[tuple[str, str, str], ...] = tuple(
    (kind, colour, background)
    for kind in OBJECTS
    for colour in COLOURS
    for background in BACKGROUNDS
    if is_held_out(kind, colour, background)
)


def sample_scene(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    split: Split = "train",
    styled: float = 0.5,
    framing: Framing = "any",
    count: int | None = None,
) -> Scene:
    """Draw a scene of `width` x `height` pixels.

    `split` "train" holds no held-out combination, "held_out" has one as its first thing, "any"
    takes what comes. A share `styled` of the scenes has a style, every preset as often. `framing`
    sets how large a lone thing is; `count` the number of things (1 to 3), else 65 % of scenes
    have one.
    """
    background = str(rng.choice(BACKGROUNDS))
    number = count if count is not None else int(rng.choice((1, 2, 3), p=(0.65, 0.25, 0.10)))
    pairs: list[tuple[str, str]] = []
    if split == "held_out":
        kind, colour, background = HELD_OUT[int(rng.integers(len(HELD_OUT)))]
        pairs.append((kind, colour))
    while len(pairs) < number:
        kind = OBJECTS[int(rng.integers(len(OBJECTS)))]
        colour = tuple(COLOURS)[int(rng.integers(len(COLOURS)))]
        if split == "train" and is_held_out(kind, colour, background):
            continue
        # Two things of one kind and one colour could not be told apart in words.
        if (kind, colour) not in pairs:
            pairs.append((kind, colour))
    boxes = _layout(rng, [kind for kind, _ in pairs], width, height, framing)
    things = tuple(
        Thing(kind, colour, size, x, y)
        for (kind, colour), (size, x, y) in zip(pairs, boxes, strict=True)
    )
    style = STYLES[int(rng.integers(len(STYLES)))] if rng.random() < styled else None
    return Scene(things, background, style, width, height, int(rng.integers(2**31)))


def _layout(
    rng: np.random.Generator, kinds: list[str], width: int, height: int, framing: Framing
) -> list[tuple[float, float, float]]:
    """(size, x, y) of each thing, none over another or past the frame."""
    short = min(width, height)
    wide, tall = width / short, height / short
    if len(kinds) == 1:
        name = framing
        if framing == "any":
            name = ("close", "medium", "small")[int(rng.choice(3, p=(0.25, 0.5, 0.25)))]
        size = float(rng.uniform(*FRAMINGS[name]))
        centres = [_place(rng, size, (0.0, wide), (0.0, tall), kinds[0])]
        sizes = [size]
    else:
        # A row or a column of cells, along the longer side; either where the picture is square.
        across = wide > 1.2 * tall or (tall <= 1.2 * wide and rng.random() < 0.6)
        if across and tall > 1.2 * wide:
            across = False
        number = len(kinds)
        cell = (wide if across else tall) / number
        sizes, centres = [], []
        for index, kind in enumerate(kinds):
            size = float(min(cell * 0.9, 0.62) * rng.uniform(0.8, 1.0))
            span = (cell * index, cell * (index + 1))
            sizes.append(size)
            if across:
                centres.append(_place(rng, size, span, (0.0, tall), kind))
            else:
                centres.append(_place(rng, size, (0.0, wide), span, kind))
        order = rng.permutation(number)
        sizes = [sizes[i] for i in order]
        centres = [centres[i] for i in order]
    return [(size, x / wide, y / tall) for size, (x, y) in zip(sizes, centres, strict=True)]


def _place(
    rng: np.random.Generator,
    size: float,
    across: tuple[float, float],
    down: tuple[float, float],
    kind: str,
) -> tuple[float, float]:
    """A centre, in units of the shorter side, that keeps the thing's box inside the two spans."""
    spare_x = max(across[1] - across[0] - size, 0.0) / 2
    spare_y = max(down[1] - down[0] - size, 0.0) / 2
    x = (across[0] + across[1]) / 2 + spare_x * float(rng.uniform(-0.8, 0.8))
    # What stands on the ground is set lower, so that its foot is below the horizon.
    low, high = (0.1, 0.7) if kind in GROUNDED else (-0.6, 0.6)
    y = (down[0] + down[1]) / 2 + spare_y * float(rng.uniform(low, high))
    return x, y
