"""The kinds of object, each as a short list of flat polygons in a unit box.

A box is 1 x 1, its centre at the origin, x to the right and y down. A part is painted in the
thing's own colour, in a shade of it, or in an accent that is the same whatever the thing's is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

RGB = tuple[int, int, int]
CURVE_POINTS = 44

ACCENTS: dict[str, RGB] = {
    "window": (168, 216, 240),
    "wood": (112, 74, 46),
    "leaf": (70, 140, 64),
    "cream": (244, 238, 220),
    "ice": (240, 246, 252),
    "tyre": (44, 44, 50),
    "hub": (190, 194, 200),
    "eye": (28, 28, 32),
    "glint": (252, 252, 252),
    "centre": (250, 208, 66),
    "nose": (232, 130, 140),
    "lamp": (252, 228, 130),
}


@dataclass(frozen=True)
class Part:
    """One polygon: `points` (N, 2) in the unit box, `paint` its colour by name, `solid` whether it
    is of the silhouette (outlined, casting shadow) or a detail upon it. `outward` (N, 2) is how far
    each point moves where the polygon grows by 1 on every side; `corners` are its sharp points."""

    points: np.ndarray
    paint: str
    solid: bool
    outward: np.ndarray
    corners: np.ndarray


def paint_rgb(paint: str, colour: str, rgb: RGB) -> RGB:
    """The colour of a part of a thing whose colour is `colour`, `rgb`."""
    if paint == "body":
        return rgb
    if paint == "shade":
        return mix(rgb, (20, 16, 40), 0.24 if colour != "white" else 0.16)
    if paint == "deep" and colour == "black":
        return (76, 78, 92)
    if paint == "deep":
        return mix(rgb, (24, 18, 36), 0.42 if colour != "white" else 0.3)
    if paint == "light":
        return mix(rgb, (255, 255, 255), 0.34 if colour != "black" else 0.2)
    if paint == "centre" and colour in ("yellow", "orange"):
        return ACCENTS["wood"]
    if paint == "eye" and colour == "black":
        return (250, 222, 90)
    if paint == "wood" and colour == "brown":
        return (74, 44, 26)
    return ACCENTS[paint]


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """`first` with `share` of `second` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


@cache
def parts_of(kind: str) -> tuple[Part, ...]:
    """The parts of a kind, back to front."""
    return _KINDS[kind]()


def _part(points: np.ndarray | list[tuple[float, float]], paint: str, solid: bool = True) -> Part:
    outline = np.asarray(points, dtype=np.float64)
    before = outline - np.roll(outline, 1, axis=0)
    after = np.roll(outline, -1, axis=0) - outline
    turn = np.arctan2(
        before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0], (before * after).sum(axis=1)
    )
    return Part(outline, paint, solid, outward_of(outline), outline[np.abs(turn) > 0.35])


def outward_of(points: np.ndarray) -> np.ndarray:
    """The mitred outward step of each vertex of a polygon (N, 2), at most 2.4 long."""
    after = np.roll(points, -1, axis=0) - points
    after /= np.maximum(np.linalg.norm(after, axis=1, keepdims=True), 1e-9)
    # The area's sign says which way round the points run.
    rolled = np.roll(points, -1, axis=0)
    area = float((points[:, 0] * rolled[:, 1] - rolled[:, 0] * points[:, 1]).sum())
    normal = np.stack([after[:, 1], -after[:, 0]], axis=1) * np.sign(area)
    before = np.roll(normal, 1, axis=0)
    middle = normal + before
    length = np.maximum(np.linalg.norm(middle, axis=1, keepdims=True), 1e-9)
    middle /= length
    cosine = np.maximum((middle * normal).sum(axis=1, keepdims=True), 1 / 2.4)
    outward: np.ndarray = middle / cosine
    return outward


def _detail(points: np.ndarray | list[tuple[float, float]], paint: str) -> Part:
    return _part(points, paint, solid=False)


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> np.ndarray:
    """Points from angle `start` to `end`, in degrees, clockwise from the right."""
    count = max(6, round(CURVE_POINTS * abs(end - start) / 360))
    angle = np.radians(np.linspace(start, end, count))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _oval(x: float, y: float, rx: float, ry: float | None = None) -> np.ndarray:
    return _arc(x, y, rx, rx if ry is None else ry, 0, 360)[:-1]


def _box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _crescent(x: float, y: float, radius: float) -> np.ndarray:
    """The shaded lower right rim of a ball."""
    inner = _arc(x - radius * 0.26, y - radius * 0.26, radius * 0.98, radius * 0.98, 118, -28)
    return np.concatenate([_arc(x, y, radius, radius, -42, 132), inner])


def _circle() -> tuple[Part, ...]:
    return (
        _part(_oval(0, 0, 0.48), "body"),
        _detail(_crescent(0, 0, 0.48), "shade"),
        _detail(_oval(-0.17, -0.2, 0.1, 0.08), "light"),
    )


def _square() -> tuple[Part, ...]:
    return (
        _part(_box(-0.44, -0.44, 0.44, 0.44), "body"),
        _detail(
            [(0.44, -0.44), (0.44, 0.44), (-0.44, 0.44), (-0.3, 0.3), (0.3, 0.3), (0.3, -0.3)],
            "shade",
        ),
        _detail(_box(-0.33, -0.33, -0.13, -0.22), "light"),
    )


def _triangle() -> tuple[Part, ...]:
    return (
        _part([(0, -0.46), (0.5, 0.42), (-0.5, 0.42)], "body"),
        _detail([(0, -0.46), (0.5, 0.42), (0.1, 0.42)], "shade"),
    )


def _star() -> tuple[Part, ...]:
    angle = np.radians(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 0.5, 0.215)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle) + 0.03], axis=1)
    centre = np.array([[0.0, 0.03]])
    shades = [
        _detail(np.concatenate([points[[i, i + 1]], centre]), "shade") for i in (0, 2, 4, 6, 8)
    ]
    return (_part(points, "body"), *shades)


def _heart() -> tuple[Part, ...]:
    t = np.linspace(0, 2 * np.pi, CURVE_POINTS, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    points = np.stack([x / 34, y / 34 - 0.07], axis=1)
    right = points[(t > 0.5) & (t < np.pi)]
    inner = right[::-1] * np.array([0.74, 0.86]) + np.array([0.0, -0.0])
    return (
        _part(points, "body"),
        _detail(np.concatenate([right, inner]), "shade"),
        _detail(_oval(-0.22, -0.22, 0.1, 0.075), "light"),
    )


def _house() -> tuple[Part, ...]:
    return (
        _part(_box(0.16, -0.42, 0.28, -0.1), "deep"),
        _part(_box(-0.36, -0.08, 0.36, 0.47), "body"),
        _part([(0, -0.47), (0.48, -0.04), (-0.48, -0.04)], "deep"),
        _detail(_box(-0.09, 0.16, 0.09, 0.47), "wood"),
        _detail(_box(-0.29, 0.08, -0.15, 0.24), "window"),
        _detail(_box(0.15, 0.08, 0.29, 0.24), "window"),
    )


def _tree() -> tuple[Part, ...]:
    return (
        _part(_box(-0.07, 0.12, 0.07, 0.48), "wood"),
        _part(_oval(-0.2, -0.02, 0.21), "body"),
        _part(_oval(0.2, -0.02, 0.21), "body"),
        _part(_oval(0, -0.22, 0.26), "body"),
        _detail(_crescent(0.2, -0.02, 0.21), "shade"),
        _detail(_oval(-0.08, -0.3, 0.08, 0.06), "light"),
    )


def _flower() -> tuple[Part, ...]:
    stem = _part(_box(-0.028, 0.05, 0.028, 0.49), "leaf")
    leaves = [
        _part([(0, 0.42), (-0.1, 0.27), (-0.24, 0.25), (-0.16, 0.38)], "leaf"),
        _part([(0, 0.42), (0.1, 0.27), (0.24, 0.25), (0.16, 0.38)], "leaf"),
    ]
    petals = []
    for turn in range(6):
        angle = np.radians(turn * 60 - 90)
        petals.append(_part(_oval(0.2 * np.cos(angle), -0.16 + 0.2 * np.sin(angle), 0.13), "body"))
    return (stem, *leaves, *petals, _detail(_oval(0, -0.16, 0.115), "centre"))


def _fish() -> tuple[Part, ...]:
    return (
        _part([(0.18, 0.0), (0.49, -0.25), (0.42, 0.0), (0.49, 0.25)], "deep"),
        _part([(-0.1, -0.2), (0.06, -0.38), (0.18, -0.14)], "deep"),
        _part(_oval(-0.1, 0, 0.39, 0.25), "body"),
        _detail(
            np.concatenate(
                [_arc(-0.1, 0, 0.39, 0.25, 5, 175), _arc(-0.1, 0.02, 0.39, 0.13, 175, 5)]
            ),
            "shade",
        ),
        _detail([(-0.06, -0.02), (0.1, 0.06), (-0.06, 0.12)], "deep"),
        _detail(_oval(-0.3, -0.06, 0.062), "glint"),
        _detail(_oval(-0.31, -0.06, 0.034), "eye"),
    )


def _boat() -> tuple[Part, ...]:
    return (
        _part(_box(-0.045, -0.48, 0.005, 0.2), "wood"),
        _part([(0.03, -0.46), (0.03, 0.1), (0.4, 0.1)], "light"),
        _part([(-0.08, -0.32), (-0.08, 0.1), (-0.34, 0.1)], "cream"),
        _part([(-0.49, 0.16), (0.49, 0.16), (0.33, 0.42), (-0.33, 0.42)], "body"),
        _detail([(-0.39, 0.32), (0.39, 0.32), (0.33, 0.42), (-0.33, 0.42)], "shade"),
    )


def _car() -> tuple[Part, ...]:
    return (
        _part([(-0.26, -0.02), (-0.16, -0.25), (0.16, -0.25), (0.3, -0.02)], "body"),
        _part(
            np.concatenate(
                [
                    _arc(-0.4, 0.06, 0.09, 0.1, 180, 270),
                    _arc(0.38, 0.08, 0.11, 0.12, 270, 360),
                    [(0.49, 0.2), (-0.49, 0.2)],
                ]
            ),
            "body",
        ),
        _part(_oval(-0.26, 0.2, 0.115), "tyre"),
        _part(_oval(0.26, 0.2, 0.115), "tyre"),
        _detail(_box(-0.49, 0.11, 0.49, 0.18), "shade"),
        _detail(_oval(-0.26, 0.2, 0.115), "tyre"),
        _detail(_oval(0.26, 0.2, 0.115), "tyre"),
        _detail(_oval(-0.26, 0.2, 0.05), "hub"),
        _detail(_oval(0.26, 0.2, 0.05), "hub"),
        _detail([(-0.2, -0.04), (-0.12, -0.2), (-0.01, -0.2), (-0.01, -0.04)], "window"),
        _detail([(0.04, -0.04), (0.04, -0.2), (0.13, -0.2), (0.22, -0.04)], "window"),
        _detail(_oval(0.45, 0.05, 0.035), "lamp"),
    )


def _cat() -> tuple[Part, ...]:
    tail = np.concatenate(
        [_arc(0.28, 0.2, 0.18, 0.24, 90, -80), _arc(0.28, 0.2, 0.1, 0.15, -80, 90)]
    )
    return (
        _part(tail, "shade"),
        _part(_oval(0, 0.24, 0.25, 0.24), "body"),
        _part([(-0.28, -0.12), (-0.27, -0.48), (-0.02, -0.28)], "body"),
        _part([(0.28, -0.12), (0.27, -0.48), (0.02, -0.28)], "body"),
        _part(_oval(0, -0.13, 0.29, 0.23), "body"),
        _detail([(-0.23, -0.26), (-0.23, -0.4), (-0.12, -0.31)], "nose"),
        _detail([(0.23, -0.26), (0.23, -0.4), (0.12, -0.31)], "nose"),
        _detail(_arc(0, 0.24, 0.25, 0.24, 30, 150), "shade"),
        _detail(_oval(0, 0.27, 0.11, 0.14), "light"),
        _detail(_oval(-0.12, -0.15, 0.048, 0.06), "eye"),
        _detail(_oval(0.12, -0.15, 0.048, 0.06), "eye"),
        _detail([(-0.045, -0.06), (0.045, -0.06), (0, -0.01)], "nose"),
    )


def _moon() -> tuple[Part, ...]:
    outer = _arc(0.05, 0, 0.48, 0.48, 62, 298)
    inner = _arc(0.25, 0, 0.424, 0.424, 270, 90)
    rim = np.concatenate(
        [_arc(0.05, 0, 0.48, 0.48, 80, 190), _arc(0.1, -0.03, 0.48, 0.46, 190, 80)]
    )
    return (
        _part(np.concatenate([outer, inner]), "body"),
        _detail(rim, "shade"),
        _detail(_oval(-0.27, -0.12, 0.055), "shade"),
        _detail(_oval(-0.2, 0.14, 0.04), "shade"),
    )


def _mountain() -> tuple[Part, ...]:
    return (
        _part([(0.22, -0.14), (0.5, 0.4), (-0.1, 0.4)], "deep"),
        _part([(-0.1, -0.44), (0.36, 0.4), (-0.5, 0.4)], "body"),
        _detail([(-0.1, -0.44), (0.36, 0.4), (0.02, 0.4), (-0.06, 0.0)], "shade"),
        _detail(
            [
                (-0.1, -0.44),
                (0.021, -0.22),
                (-0.04, -0.27),
                (-0.09, -0.19),
                (-0.15, -0.26),
                (-0.205, -0.22),
            ],
            "ice",
        ),
    )


_KINDS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "house": _house,
    "tree": _tree,
    "flower": _flower,
    "fish": _fish,
    "boat": _boat,
    "car": _car,
    "cat": _cat,
    "moon": _moon,
    "mountain": _mountain,
}
