"""The eight backgrounds: a gradient from top to bottom and a few flat shapes upon it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scripts.training.world.objects import RGB, mix
from scripts.training.world.scene import Scene

PLAIN_TONES: dict[str, RGB] = {
    "white": (236, 236, 234),
    "grey": (196, 198, 202),
    "cream": (236, 226, 204),
}


@dataclass(frozen=True)
class Shape:
    """A polygon in pixels, (N, 2). `lined` says whether an outline of it means anything."""

    points: np.ndarray
    rgb: RGB
    lined: bool = True


@dataclass
class Backdrop:
    """`top` and `bottom` of the gradient, `main` the one colour that stands for the background,
    `ground` the colour underfoot, `horizon` in pixels from the top or None."""

    top: RGB
    bottom: RGB
    main: RGB
    ground: RGB
    horizon: float | None = None
    shapes: list[Shape] = field(default_factory=list)


def plain_tone(scene: Scene) -> str:
    """The tone of a plain background: never white behind a white thing."""
    tones = tuple(PLAIN_TONES)
    if any(thing.colour == "white" for thing in scene.things):
        tones = ("grey", "cream")
    return tones[scene.seed % len(tones)]


def backdrop(scene: Scene, rng: np.random.Generator) -> Backdrop:
    """The background of a scene. Small details (clouds, stars, dunes) come from `rng`."""
    if scene.background == "plain":
        tone = PLAIN_TONES[plain_tone(scene)]
        return Backdrop(mix(tone, (255, 255, 255), 0.12), mix(tone, (90, 90, 90), 0.06), tone, tone)
    return _MAKERS[scene.background](float(scene.width), float(scene.height), rng)


def _oval(x: float, y: float, rx: float, ry: float, count: int = 28) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _hill(
    width: float, height: float, level: float, rise: float, waves: float, phase: float
) -> np.ndarray:
    """All below a rolling line: `level` and `rise` in pixels, `waves` across the width."""
    x = np.linspace(0, width, 33)
    y = level - rise * np.sin(x / width * 2 * np.pi * waves + phase)
    return np.concatenate(
        [np.stack([x, y], axis=1), [(width + 9.0, height + 9.0), (-9.0, height + 9.0)]]
    )


def _cloud(x: float, y: float, size: float) -> list[np.ndarray]:
    """Three bumps on a flat foot."""
    bumps = ((-0.6, 0.3), (0.0, 0.46), (0.6, 0.3))
    foot = np.array([[-0.6, -0.6], [0.6, -0.6], [0.6, 0.0], [-0.6, 0.0]]) * (size, size * 0.5)
    ovals = [_oval(x + dx * size, y - r * size, r * size, r * size) for dx, r in bumps]
    return [*ovals, foot + np.array((x, y))]


def _sky(width: float, height: float, rng: np.random.Generator) -> Backdrop:
    unit = min(width, height)
    made = Backdrop((98, 174, 240), (188, 224, 250), (134, 196, 244), (176, 216, 248))
    spots = ((0.2, 0.2), (0.8, 0.32), (0.24, 0.82), (0.82, 0.86))
    for x, y in spots:
        size = unit * rng.uniform(0.11, 0.17)
        across = (x + rng.uniform(-0.08, 0.08)) * width
        down = (y + rng.uniform(-0.06, 0.06)) * height
        made.shapes += [Shape(points, (244, 249, 254)) for points in _cloud(across, down, size)]
    return made


def _night(width: float, height: float, rng: np.random.Generator) -> Backdrop:
    unit = min(width, height)
    made = Backdrop((18, 20, 62), (62, 58, 128), (36, 38, 92), (50, 48, 108))
    for x, y in rng.random((14, 2)):
        radius = unit * rng.uniform(0.009, 0.016)
        made.shapes.append(Shape(_oval(x * width, y * height, radius, radius, 10), (246, 238, 196)))
    return made


def _grass(width: float, height: float, rng: np.random.Generator) -> Backdrop:
    unit, level = min(width, height), height * rng.uniform(0.36, 0.46)
    green = (132, 194, 84)
    made = Backdrop((178, 218, 246), (222, 240, 250), green, green, level)
    phase = rng.uniform(0, 6)
    made.shapes.append(
        Shape(_hill(width, height, level - unit * 0.03, unit * 0.035, 1.2, phase), (104, 172, 74))
    )
    made.shapes.append(
        Shape(_hill(width, height, level + unit * 0.04, unit * 0.02, 0.7, phase), green)
    )
    for x, y in rng.random((9, 2)):
        foot = np.array([x * width, level + unit * 0.1 + y * (height - level - unit * 0.12)])
        blade = np.array(
            [
                [-1.3, -0.9],
                [-0.35, -0.1],
                [0, -1.5],
                [0.35, -0.1],
                [1.3, -0.9],
                [0.4, 0.5],
                [-0.4, 0.5],
            ]
        )
        made.shapes.append(Shape(foot + blade * unit * 0.026, (92, 156, 62)))
    return made


def _desert(width: float, height: float, rng: np.random.Generator) -> Backdrop:
    unit, level = min(width, height), height * rng.uniform(0.4, 0.5)
    made = Backdrop((252, 226, 176), (254, 242, 214), (230, 190, 116), (232, 194, 120), level)
    phase = rng.uniform(0, 6)
    for depth, (drop, rgb) in enumerate(
        ((0.0, (238, 206, 142)), (0.14, (230, 190, 116)), (0.34, (218, 174, 98)))
    ):
        line = _hill(
            width,
            height,
            level + drop * height,
            unit * 0.05,
            0.8 + 0.25 * depth,
            phase + 2.1 * depth,
        )
        made.shapes.append(Shape(line, rgb))
    return made


def _ocean(width: float, height: float, rng: np.random.Generator) -> Backdrop:
    unit, level = min(width, height), height * rng.uniform(0.3, 0.4)
    made = Backdrop((206, 234, 248), (234, 246, 250), (26, 132, 168), (26, 132, 168), level)
    phase = rng.uniform(0, 6)
    waves = 5.0 * width / unit
    for depth, (drop, rgb) in enumerate(
        ((0.0, (44, 156, 188)), (0.22, (26, 132, 168)), (0.46, (14, 108, 146)))
    ):
        x = np.linspace(0, width, 81)
        y = (
            level
            + drop * height
            - unit * 0.016 * np.cos(x / width * 2 * np.pi * waves + phase + depth)
        )
        line = np.concatenate(
            [np.stack([x, y], axis=1), [(width + 9.0, height + 9.0), (-9.0, height + 9.0)]]
        )
        made.shapes.append(Shape(line, rgb))
    return made


def _snow(width: float, height: float, rng: np.random.Generator) -> Backdrop:
    unit, level = min(width, height), height * rng.uniform(0.4, 0.5)
    made = Backdrop((146, 180, 214), (200, 218, 236), (228, 238, 248), (234, 242, 250), level)
    phase = rng.uniform(0, 6)
    for x, y in rng.random((12, 2)):
        radius = unit * rng.uniform(0.011, 0.019)
        flake = _oval(x * width, y * level, radius, radius, 10)
        made.shapes.append(Shape(flake, (250, 252, 254)))
    for drop, rgb, shift in ((0.0, (214, 228, 242), 0.0), (0.13, (236, 243, 250), 2.4)):
        line = _hill(width, height, level + drop * height, unit * 0.045, 0.9, phase + shift)
        made.shapes.append(Shape(line, rgb))
    return made


def _sunset(width: float, height: float, rng: np.random.Generator) -> Backdrop:
    unit, level = min(width, height), height * rng.uniform(0.66, 0.74)
    made = Backdrop((126, 66, 138), (255, 190, 104), (242, 132, 96), (92, 52, 88), level)
    x = width * rng.uniform(0.25, 0.75)
    sun = _oval(x, level, unit * 0.24, unit * 0.24)
    made.shapes.append(Shape(sun, (255, 226, 140)))
    line = _hill(width, height, level, unit * 0.012, 0.6, rng.uniform(0, 6))
    made.shapes.append(Shape(line, (92, 52, 88)))
    return made


_MAKERS = {
    "sky": _sky,
    "night": _night,
    "grass": _grass,
    "desert": _desert,
    "ocean": _ocean,
    "snow": _snow,
    "sunset": _sunset,
}
