"""A scene's geometry in pixels, and the flat layers that every look is made from.

Everything is painted at twice the size and halved, which smooths its edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from scripts.training.world.backgrounds import Backdrop, Shape, backdrop
from scripts.training.world.objects import RGB, mix, paint_rgb, parts_of
from scripts.training.world.scene import COLOURS, Scene, Thing

OVERSAMPLE = 2
MIRRORED = frozenset({"fish", "boat", "car", "cat", "moon", "house", "mountain"})


@dataclass(frozen=True)
class PlacedPart:
    """A part of a thing: points, outward steps and sharp corners, each (N, 2) in pixels."""

    points: np.ndarray
    outward: np.ndarray
    corners: np.ndarray
    paint: str
    rgb: RGB
    solid: bool


@dataclass(frozen=True)
class PlacedThing:
    """A thing in pixels: centre, size of its box, its colour and that of its outline, its parts."""

    thing: Thing
    x: float
    y: float
    size: float
    rgb: RGB
    outline: RGB
    parts: tuple[PlacedPart, ...]


def outline_rgb(colour: str, background: str) -> RGB:
    """A darker line round a thing; round a black one a light line where it is dark about it."""
    if colour == "black":
        return (164, 168, 200) if background in ("night", "sunset") else (6, 6, 10)
    if colour == "white":
        return (118, 128, 150)
    return mix(COLOURS[colour], (16, 10, 30), 0.56)


class Layers:
    """One scene, ready to paint. `unit` is the shorter side in pixels; `rng` feeds the look."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.width, self.height = scene.width, scene.height
        self.unit = float(min(scene.width, scene.height))
        self.rng = np.random.default_rng(scene.seed)
        self.backdrop: Backdrop = backdrop(scene, self.rng)
        self.things = tuple(self._placed(thing, i) for i, thing in enumerate(scene.things))

    def _placed(self, thing: Thing, index: int) -> PlacedThing:
        x, y, size = thing.x * self.width, thing.y * self.height, thing.size * self.unit
        mirror = thing.kind in MIRRORED and (self.scene.seed >> (index + 3)) & 1
        scale = np.array([-size if mirror else size, size])
        rgb = COLOURS[thing.colour]
        parts = tuple(
            PlacedPart(
                part.points * scale + (x, y),
                part.outward * np.sign(scale),
                part.corners * scale + (x, y),
                part.paint,
                paint_rgb(part.paint, thing.colour, rgb),
                part.solid,
            )
            for part in parts_of(thing.kind)
        )
        line = outline_rgb(thing.colour, self.scene.background)
        return PlacedThing(thing, x, y, size, rgb, line, parts)

    def canvas(self, fill: int | RGB, mode: str = "RGB") -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """A blank picture at twice the size, and its pen."""
        image = Image.new(mode, (self.width * OVERSAMPLE, self.height * OVERSAMPLE), fill)
        return image, ImageDraw.Draw(image)

    def background(self, *, shapes: bool = True) -> Image.Image:
        """The background alone, at twice the size."""
        return paint_backdrop(self.backdrop, self.width, self.height, shapes=shapes)

    def picture(
        self,
        *,
        outline: float = 1.0,
        line: RGB | None = None,
        over: Image.Image | None = None,
        shading: bool = True,
        oversampled: bool = False,
    ) -> Image.Image:
        """The plain drawing. `outline` scales the line's width, 0 for none; `line` is its colour,
        else each thing's own; `over` is a background at twice the size; `shading` paints shades."""
        image = self.background() if over is None else over
        pen = ImageDraw.Draw(image)
        for placed in self.things:
            if outline > 0:
                width = outline * (0.018 * placed.size + 0.007 * self.unit)
                for part in placed.parts:
                    if part.solid:
                        fill(pen, part.points + part.outward * width, line or placed.outline)
            for part in placed.parts:
                if shading or part.solid or part.paint not in ("shade", "light"):
                    fill(pen, part.points, part.rgb)
        return image if oversampled else halved(image)

    @cached_property
    def mask(self) -> Image.Image:
        """Where the things are: L, 255 inside, at picture size."""
        return self.mask_of(self.things)

    def mask_of(self, things: tuple[PlacedThing, ...], grow: float = 0.0) -> Image.Image:
        """The silhouettes of some things, `grow` pixels larger all round."""
        image, pen = self.canvas(0, "L")
        for placed in things:
            for part in placed.parts:
                if part.solid:
                    fill(pen, part.points + part.outward * grow, 255)
        return halved(image)


def halved(image: Image.Image) -> Image.Image:
    return image.reduce(OVERSAMPLE)


def fill(pen: ImageDraw.ImageDraw, points: np.ndarray, rgb: int | RGB) -> None:
    """A filled polygon; points in picture pixels."""
    pen.polygon((points * OVERSAMPLE).ravel().tolist(), fill=rgb)


def stroke(
    pen: ImageDraw.ImageDraw,
    points: np.ndarray,
    corners: np.ndarray,
    rgb: int | RGB,
    width: float,
    *,
    closed: bool = True,
) -> None:
    """A line along the points, its sharp corners rounded; `width` in picture pixels."""
    line = (points * OVERSAMPLE).ravel().tolist()
    if closed:
        line += line[:4]
    across = max(1, round(width * OVERSAMPLE))
    pen.line(line, fill=rgb, width=across)
    radius = across / 2
    if radius > 1:
        for x, y in (corners * OVERSAMPLE).tolist():
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=rgb)


def paint_backdrop(made: Backdrop, width: int, height: int, *, shapes: bool = True) -> Image.Image:
    """A backdrop at twice the size."""
    end = height if made.horizon is None else made.horizon + 0.1 * height
    image = gradient(made.top, made.bottom, width * OVERSAMPLE, height * OVERSAMPLE, end / height)
    if shapes:
        pen = ImageDraw.Draw(image)
        for shape in made.shapes:
            fill(pen, shape.points, shape.rgb)
    return image


def gradient(top: RGB, bottom: RGB, width: int, height: int, end: float = 1.0) -> Image.Image:
    """From `top` to `bottom`, which is reached at the fraction `end` of the height."""
    share = np.minimum(np.linspace(0, 1, 64) / end, 1.0)[:, None]
    column = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
    rows = np.round(column).astype(np.uint8)[:, None, :]
    return Image.fromarray(rows).resize((width, height), Image.Resampling.BILINEAR)


def lined_shapes(made: Backdrop) -> list[Shape]:
    """The backdrop's shapes that an outline tells."""
    return [shape for shape in made.shapes if shape.lined]
