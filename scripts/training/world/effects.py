"""What several looks are made of: blur, light, grain, masks; pictures are float arrays in 0..1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from scripts.training.world.layers import Layers, PlacedThing
from scripts.training.world.objects import RGB

Array = np.ndarray
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def pixels(image: Image.Image) -> Array:
    """(H, W, 3) or (H, W) float32 in 0..1."""
    return np.asarray(image, dtype=np.float32) / 255.0


def colour(rgb: RGB) -> Array:
    return np.asarray(rgb, dtype=np.float32) / 255.0


def blurred(array: Array, radius: float) -> Array:
    """A Gaussian-like blur; `radius` in pixels."""
    image = Image.fromarray(np.round(np.clip(array, 0, 1) * 255).astype(np.uint8))
    return pixels(image.filter(ImageFilter.GaussianBlur(radius)))


def blend(under: Array, over: Array | np.float32, share: Array | float) -> Array:
    """`over` upon `under`, where `share` (H, W) or a number is 1."""
    weight = share[..., None] if isinstance(share, np.ndarray) and share.ndim == 2 else share
    return under * (1 - weight) + over * weight


def saturated(array: Array, amount: float) -> Array:
    """Colours `amount` times as far from grey."""
    grey = (array @ LUMA)[..., None]
    return grey + (array - grey) * amount


def contrasted(array: Array, amount: float) -> Array:
    return (array - 0.5) * amount + 0.5


def vignette(layers: Layers, strength: float) -> Array:
    """(H, W, 1) factors that darken the corners."""
    y = np.linspace(-1, 1, layers.height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, layers.width, dtype=np.float32)[None, :]
    return (1 - strength * np.clip((x * x + y * y) / 2, 0, 1) ** 1.2)[..., None]


def smooth_noise(layers: Layers, cells: float) -> Array:
    """(H, W) noise in 0..1, soft, with about `cells` lumps along the shorter side."""
    rows = max(2, round(cells * layers.height / layers.unit))
    columns = max(2, round(cells * layers.width / layers.unit))
    grid = layers.rng.random((rows, columns)) * 255
    image = Image.fromarray(grid.astype(np.uint8))
    return pixels(image.resize((layers.width, layers.height), Image.Resampling.BICUBIC))


def mask(layers: Layers) -> Array:
    return pixels(layers.mask)


def relief(height: Array, unit: float, depth: float) -> tuple[Array, Array]:
    """(light, gleam), each (H, W), of a surface `height` lit from the upper left."""
    gy, gx = np.gradient(height)
    gx, gy = gx * unit * depth, gy * unit * depth
    length = np.sqrt(gx * gx + gy * gy + 1)
    light = (-0.5 * -gx - 0.6 * -gy + 0.62) / length
    return np.clip(light, 0, 1.3), np.clip(light, 0, 1) ** 10


def shadow(layers: Layers, dx: float, dy: float, softness: float) -> Array:
    """(H, W) the things' shadow, moved by fractions of the shorter side."""
    moved = np.roll(mask(layers), (round(dy * layers.unit), round(dx * layers.unit)), axis=(0, 1))
    return blurred(moved, softness * layers.unit) if softness > 0 else moved


def scaled(placed: PlacedThing, scale: float, x: float, y: float) -> PlacedThing:
    """The thing `scale` times as large with its centre at (x, y) pixels."""

    def moved(points: Array) -> Array:
        return (points - (placed.x, placed.y)) * scale + (x, y)

    parts = tuple(
        replace(part, points=moved(part.points), corners=moved(part.corners))
        for part in placed.parts
    )
    return replace(placed, x=x, y=y, size=placed.size * scale, parts=parts)


def image_of(array: Array) -> Array:
    """uint8 (H, W, 3)."""
    image: Array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return image
