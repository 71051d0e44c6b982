"""The looks of the 17 style presets, and the plain drawing.

Each look paints one scene from its layers. Everything is sized by the picture's shorter side, and
grain, dots and blocks are coarse enough to outlive a VAE that makes one cell of 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from scripts.training.world.effects import (
    Array,
    blend,
    blurred,
    contrasted,
    image_of,
    mask,
    pixels,
    relief,
    saturated,
    scaled,
    shadow,
    smooth_noise,
    vignette,
)
from scripts.training.world.layers import Layers, fill, gradient, halved, lined_shapes, stroke
from scripts.training.world.objects import RGB, mix
from scripts.training.world.scene import Scene

INK: RGB = (14, 12, 18)


def three_d_model(layers: Layers) -> Array:
    """Glossy, rounded, on a softly lit studio floor that keeps the background's tone."""
    unit = layers.unit
    base = blend(blurred(pixels(halved(layers.background())), 0.05 * unit), np.float32(0.82), 0.25)
    base = base * (1 - 0.45 * shadow(layers, 0.04, 0.07, 0.03))[..., None]
    body = pixels(layers.picture(outline=0, shading=False))
    light, gleam = relief(blurred(mask(layers), 0.035 * unit), unit, 0.16)
    shaded = body * (0.55 + 0.62 * light)[..., None] + 0.55 * gleam[..., None]
    return blend(base, shaded, mask(layers))


def analog_film(layers: Layers) -> Array:
    """Faded and warm, lifted blacks, coarse grain, dark corners, a light leak."""
    base = blurred(pixels(layers.picture(outline=0.6)), 0.006 * layers.unit)
    faded = saturated(base, 0.62) * np.array([0.74, 0.66, 0.52]) + np.array([0.2, 0.16, 0.12])
    grain = layers.rng.normal(0, 1, (max(8, layers.height // 5), max(8, layers.width // 5)))
    noise = Image.fromarray((np.clip(grain * 40 + 128, 0, 255)).astype(np.uint8))
    noise = noise.resize((layers.width, layers.height), Image.Resampling.BILINEAR)
    faded = faded + (pixels(noise) - 0.5)[..., None] * 0.28
    across = np.linspace(1, 0, layers.width, dtype=np.float32)[None, :]
    leak = np.clip(across - 0.72, 0, 1) * 2.2
    faded = blend(faded, np.array([0.98, 0.55, 0.22]), np.broadcast_to(leak, faded.shape[:2]) * 0.9)
    film: Array = faded * vignette(layers, 0.55)
    return film


def anime(layers: Layers) -> Array:
    """Bold dark outlines, vivid colours, one hard step of shade."""
    background = contrasted(saturated(pixels(layers.background()), 1.45), 1.05) + 0.04
    over = Image.fromarray(image_of(background))
    body = pixels(layers.picture(outline=1.9, line=(30, 18, 44), over=over, shading=False))
    light, _ = relief(blurred(mask(layers), 0.05 * layers.unit), layers.unit, 0.2)
    dark = (light < 0.5) & (mask(layers) > 0.5)
    cel = blend(saturated(body, 1.3), body * np.array([0.62, 0.56, 0.78]), dark.astype(np.float32))
    return contrasted(cel, 1.08)


def cinematic(layers: Layers) -> Array:
    """Teal shadows, orange lights, dark corners, widescreen bars."""
    base = contrasted(pixels(layers.picture(outline=0.5)), 1.1)
    luma = np.clip(base.mean(axis=2, keepdims=True), 0, 1)
    teal, orange = np.array([0.0, 0.16, 0.2]), np.array([0.2, 0.07, -0.1])
    graded: Array = base * 0.78 + teal * (1 - luma) + orange * luma
    graded = graded * vignette(layers, 0.75)
    bar = round(0.11 * layers.height)
    graded[:bar] = graded[-bar:] = 0.015
    return graded


def comic_book(layers: Layers) -> Array:
    """Thick ink round everything, halftone dots on the background and in the shade."""
    over = layers.background()
    pen = ImageDraw.Draw(over)
    for shape in lined_shapes(layers.backdrop):
        stroke(pen, shape.points, shape.points[:0], INK, 0.012 * layers.unit)
    over = Image.fromarray(image_of(contrasted(saturated(pixels(over), 1.3), 0.8) + 0.14))
    base = saturated(pixels(layers.picture(outline=2.6, line=INK, over=over)), 1.35)
    cell = layers.unit / 13
    y, x = np.mgrid[0 : layers.height, 0 : layers.width].astype(np.float32)
    u, v = (x + y) / cell * 0.7071, (x - y) / cell * 0.7071
    distance = np.hypot(u - np.round(u), v - np.round(v))
    inside = mask(layers)
    down = np.linspace(0.2, 0.36, layers.height, dtype=np.float32)[:, None]
    light, _ = relief(blurred(inside, 0.05 * layers.unit), layers.unit, 0.2)
    radius = np.where(inside > 0.5, np.where(light < 0.52, 0.33, 0.0), down)
    dots = np.clip((radius - distance) * cell + 0.5, 0, 1) * (radius > 0)
    dotted: Array = base * (1 - 0.42 * dots)[..., None]
    return dotted


def digital_art(layers: Layers) -> Array:
    """Smooth gradients and a luminous glow."""
    unit = layers.unit
    base = saturated(blurred(pixels(halved(layers.background())), 0.02 * unit), 1.25)
    body = pixels(layers.picture(outline=0, shading=False))
    down = np.linspace(1.28, 0.72, layers.height, dtype=np.float32)[:, None, None]
    body = saturated(body, 1.15) * down
    inside = mask(layers)
    glow = blurred(blend(np.zeros_like(body), body, inside), 0.06 * unit)
    rim = np.clip(inside - blurred(inside, 0.02 * unit), 0, 1)
    lit = blend(base * 0.72 + glow * 0.85, body, inside)
    glowing: Array = lit + 0.5 * rim[..., None]
    return glowing


def enhance(layers: Layers) -> Array:
    """Crisp, high in contrast, rich in tone."""
    base = pixels(layers.picture(outline=0.8))
    sharp = base + 0.9 * (base - blurred(base, 0.02 * layers.unit))
    return contrasted(saturated(sharp, 1.45), 1.35)


def fantasy_art(layers: Layers) -> Array:
    """Violet and gold mist, a glow, sparkles."""
    unit = layers.unit
    base = pixels(layers.picture(outline=0.5)) * np.array([0.86, 0.74, 0.98])
    down = np.linspace(0, 1, layers.height, dtype=np.float32)[:, None]
    mist = np.clip(smooth_noise(layers, 4) * (0.25 + down) * 1.1 - 0.15, 0, 0.8)
    outside = 1 - 0.65 * mask(layers)
    misty = blend(base, np.array([0.62, 0.36, 0.86]), mist * outside)
    glow = np.clip(blurred(mask(layers), 0.09 * unit) - 0.25 * mask(layers), 0, 1) * outside
    misty = misty + glow[..., None] * np.array([0.5, 0.38, 0.1])
    sparkle, pen = layers.canvas(0, "L")
    for _ in range(11):
        x, y = layers.rng.uniform(0, 1, 2) * (layers.width, layers.height)
        r = unit * layers.rng.uniform(0.022, 0.05)
        points = [
            (0, -1),
            (0.2, -0.2),
            (1, 0),
            (0.2, 0.2),
            (0, 1),
            (-0.2, 0.2),
            (-1, 0),
            (-0.2, -0.2),
        ]
        fill(pen, np.array(points) * r + (x, y), 255)
    return blend(misty, np.array([1.0, 0.93, 0.6]), pixels(halved(sparkle)))


def isometric(layers: Layers) -> Array:
    """Things as sheared blocks with depth, on a tilted tile platform."""
    unit, backdrop = layers.unit, layers.backdrop
    width, height = layers.width, layers.height
    paper = gradient(
        mix(backdrop.main, (255, 255, 255), 0.5),
        mix(backdrop.main, (255, 255, 255), 0.3),
        width * 2,
        height * 2,
    )
    pen = ImageDraw.Draw(paper)
    cx, cy, rx = width / 2, height * 0.66, 0.49 * unit * max(1.0, min(1.5, width / unit))
    ry, thick = rx * 0.5, 0.09 * unit
    rhombus = np.array([(cx - rx, cy), (cx, cy - ry), (cx + rx, cy), (cx, cy + ry)])
    left = np.array([(cx - rx, cy), (cx, cy + ry), (cx, cy + ry + thick), (cx - rx, cy + thick)])
    right = np.array([(cx + rx, cy), (cx, cy + ry), (cx, cy + ry + thick), (cx + rx, cy + thick)])
    fill(pen, left, mix(backdrop.ground, (0, 0, 0), 0.42))
    fill(pen, right, mix(backdrop.ground, (0, 0, 0), 0.25))
    fill(pen, rhombus, backdrop.ground)
    for part in np.linspace(-0.5, 0.5, 3):
        for a, b in (((cx - rx, cy), (cx, cy + ry)), ((cx - rx, cy), (cx, cy - ry))):
            other = 1 if b[1] > a[1] else -1
            shift = np.array([(part + 0.5) * rx, -other * (part + 0.5) * ry])
            stroke(
                pen,
                np.array([a, b]) + shift,
                np.empty((0, 2)),
                mix(backdrop.ground, (0, 0, 0), 0.14),
                0.008 * unit,
                closed=False,
            )
    depth = 0.08 * unit
    for placed in layers.things:
        tilt = np.array([[0.88, -0.26], [0.0, 0.9]])
        solid = [part for part in placed.parts if part.solid]
        for step in np.linspace(1, 0, 7):
            for part in solid:
                points = (part.points - (placed.x, placed.y)) @ tilt + (placed.x, placed.y)
                fill(
                    pen, points + np.array([depth, depth * 0.5]) * step, mix(placed.rgb, INK, 0.45)
                )
        for part in placed.parts:
            points = (part.points - (placed.x, placed.y)) @ tilt + (placed.x, placed.y)
            fill(pen, points, part.rgb)
    return pixels(halved(paper))


def line_art(layers: Layers) -> Array:
    """Outlines on white, each in its own colour so that colours survive."""
    paper, pen = layers.canvas((255, 255, 255))
    unit = layers.unit
    backdrop = mix(layers.backdrop.main, (120, 120, 120), 0.3)
    for shape in lined_shapes(layers.backdrop):
        stroke(
            pen, shape.points, shape.points[:0], mix(backdrop, (255, 255, 255), 0.35), 0.009 * unit
        )
    for placed in layers.things:
        ink = (170, 174, 184) if placed.thing.colour == "white" else mix(placed.rgb, INK, 0.12)
        for part in placed.parts:
            if part.solid:
                stroke(pen, part.points, part.corners, ink, 0.05 * unit)
        for part in placed.parts:
            if part.solid:
                fill(pen, part.points, (255, 255, 255))
        for part in placed.parts:
            if part.paint not in ("shade", "light"):
                stroke(pen, part.points, part.corners[:0], ink, 0.017 * unit)
    return pixels(halved(paper))


def _facets(layers: Layers, source: Array, cells: int, jitter: float) -> Array:
    """The picture in flat triangles, `cells` along the shorter side."""
    image, pen = layers.canvas((0, 0, 0))
    step = layers.unit / cells
    columns, rows = int(np.ceil(layers.width / step)) + 1, int(np.ceil(layers.height / step)) + 1
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).astype(float) * step
    grid[1:-1, 1:-1] += layers.rng.uniform(-0.32, 0.32, (rows - 2, columns - 2, 2)) * step
    for j in range(rows - 1):
        for i in range(columns - 1):
            a, b, c, d = grid[j, i], grid[j, i + 1], grid[j + 1, i + 1], grid[j + 1, i]
            pair = ((a, b, c), (a, c, d)) if (i + j) % 2 else ((a, b, d), (b, c, d))
            for triangle in pair:
                points = np.array(triangle)
                x, y = np.clip(points.mean(axis=0), 0, (layers.width - 1, layers.height - 1))
                tone = source[int(y), int(x)] * (1 + layers.rng.uniform(-jitter, jitter))
                red, green, blue = (int(v) for v in np.clip(tone * 255, 0, 255))
                fill(pen, points, (red, green, blue))
    return pixels(halved(image))


def low_poly(layers: Layers) -> Array:
    """Flat triangles, coarse behind and finer on the things."""
    unit = layers.unit
    behind = _facets(layers, blurred(pixels(halved(layers.background())), 0.04 * unit), 5, 0.13)
    body = blurred(pixels(layers.picture(outline=0)), 0.008 * unit)
    light, _ = relief(blurred(mask(layers), 0.06 * unit), unit, 0.2)
    front = _facets(layers, body * (0.6 + 0.6 * light)[..., None], 9, 0.2)
    return blend(behind, front, mask(layers))


def modeling_compound(layers: Layers) -> Array:
    """Soft lumps of matte clay with thumb prints."""
    unit = layers.unit
    lumps = smooth_noise(layers, 7) * 0.035
    base = blurred(pixels(halved(layers.background())), 0.015 * unit)
    light, _ = relief(lumps, unit, 0.5)
    base = base * (0.72 + 0.4 * light)[..., None]
    base = base * (1 - 0.45 * shadow(layers, 0.03, 0.045, 0.02))[..., None]
    soft = np.clip((blurred(mask(layers), 0.018 * unit) - 0.4) * 5, 0, 1)
    body = blurred(pixels(layers.picture(outline=0, shading=False)), 0.012 * unit)
    y, x = np.mgrid[0 : layers.height, 0 : layers.width].astype(np.float32) / unit
    prints = np.zeros_like(x)
    for _ in range(6):
        px, py = layers.rng.uniform(0, 1, 2) * (layers.width / unit, layers.height / unit)
        r = np.hypot(x - px, (y - py) * 1.4)
        prints += 0.05 * np.exp(-((r / 0.07) ** 2))
    light, _ = relief(blurred(soft, 0.05 * unit) + lumps * 0.6 - prints, unit, 0.2)
    clay = saturated(body, 0.88) * (0.5 + 0.68 * light)[..., None] + 0.03
    return blend(base, clay, soft)


def neon_punk(layers: Layers) -> Array:
    """Glowing tubes along every edge on dark purple."""
    unit = layers.unit
    dim = pixels(halved(layers.background(shapes=False)))
    base = np.array([0.09, 0.03, 0.17]) + 0.1 * dim
    tubes, pen = layers.canvas((0, 0, 0))
    for shape in lined_shapes(layers.backdrop):
        tone = mix(layers.backdrop.main, (255, 40, 200), 0.3)
        stroke(pen, shape.points, shape.points[:0], mix(tone, (0, 0, 0), 0.35), 0.01 * unit)
    for placed in layers.things:
        bright = {"black": (96, 96, 116), "brown": (176, 92, 36)}.get(
            placed.thing.colour, placed.rgb
        )
        for part in placed.parts:
            if part.solid:
                stroke(pen, part.points, part.corners, bright, 0.07 * unit)
        for part in placed.parts:
            if part.solid:
                fill(pen, part.points, mix(bright, (16, 4, 34), 0.78))
        for part in placed.parts:
            if not part.solid and part.paint not in ("shade", "light"):
                stroke(
                    pen, part.points, part.corners[:0], mix(bright, (0, 0, 0), 0.2), 0.016 * unit
                )
    lines = saturated(pixels(halved(tubes)), 1.25)
    glow = blurred(lines, 0.03 * unit) * 0.9 + blurred(lines, 0.08 * unit) * 0.8
    return base + glow + lines * 0.9


def origami(layers: Layers) -> Array:
    """Folded planes: hard-edged sectors of shade, pale creases, a crisp shadow."""
    unit = layers.unit
    y, x = np.mgrid[0 : layers.height, 0 : layers.width].astype(np.float32)
    base = blurred(pixels(halved(layers.background(shapes=False))), 0.01 * unit)
    base = blend(base, np.float32(0.95), 0.28)
    for _ in range(3):
        angle, offset = layers.rng.uniform(0, np.pi), layers.rng.uniform(-0.3, 0.3)
        side = (x / layers.width - 0.5 - offset) * np.cos(angle) + (
            y / layers.height - 0.5
        ) * np.sin(angle)
        base = base * np.where(side > 0, 1.035, 0.95)[..., None]
    base = base * (1 - 0.4 * shadow(layers, 0.025, 0.035, 0.004))[..., None]
    body = pixels(layers.picture(outline=0, shading=False))
    out = base
    for placed in layers.things:
        turn = np.arctan2(y - placed.y, x - placed.x) + (placed.thing.size * 7)
        sector = np.floor(turn / (2 * np.pi / 7)).astype(int) % 7
        tone = np.array([1.12, 0.78, 1.0, 0.66, 0.92, 1.22, 0.82])[sector]
        edge = np.abs(turn / (2 * np.pi / 7) - np.round(turn / (2 * np.pi / 7)))
        crease = np.clip(1 - edge * np.hypot(x - placed.x, y - placed.y) / (0.008 * unit), 0, 1)
        folded = blend(body * tone[..., None], np.float32(0.97), 0.35 * crease)
        out = blend(out, folded, pixels(layers.mask_of((placed,))))
    return out


def photographic(layers: Layers) -> Array:
    """Soft natural light on the things, the background out of focus."""
    unit = layers.unit
    base = blurred(saturated(pixels(halved(layers.background())), 0.82), 0.055 * unit)
    base = base * (1 - 0.4 * shadow(layers, 0.015, 0.05, 0.03))[..., None]
    body = saturated(pixels(layers.picture(outline=0.3)), 0.85)
    light, gleam = relief(blurred(mask(layers), 0.06 * unit), unit, 0.14)
    lit = body * (0.6 + 0.52 * light)[..., None] + 0.16 * gleam[..., None]
    photo: Array = (blend(base, lit, mask(layers)) * 0.95 + 0.02) * vignette(layers, 0.3)
    return photo


def pixel_art(layers: Layers) -> Array:
    """Square blocks of a limited palette."""
    block = layers.unit / 20
    small = (max(4, round(layers.width / block)), max(4, round(layers.height / block)))
    picture = layers.picture(outline=1.2).resize(small, Image.Resampling.BOX)
    limited = np.round(saturated(pixels(picture), 1.15) * 5) / 5
    large = Image.fromarray(image_of(limited))
    return pixels(large.resize((layers.width, layers.height), Image.Resampling.NEAREST))


def tile_texture(layers: Layers) -> Array:
    """The things small and repeated on one tone; opposite edges meet."""
    unit, main = layers.unit, layers.backdrop.main
    over, _ = layers.canvas(main)
    pen = ImageDraw.Draw(over)
    columns, rows = (
        max(2, round(2.6 * layers.width / unit)),
        max(2, round(2.6 * layers.height / unit)),
    )
    tile_w, tile_h = layers.width / columns, layers.height / rows
    for j in range(rows):
        for i in range(columns):
            if (i + j) % 2:
                corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) + np.array((i, j))
                fill(pen, corners * (tile_w, tile_h), mix(main, (255, 255, 255), 0.22))
    number = len(layers.things)
    original = layers.things
    repeated = []
    for j in range(rows):
        for i in range(columns):
            placed = original[(i + j) % number]
            scale = 0.74 * min(tile_w, tile_h) / placed.size
            repeated.append(scaled(placed, scale, (i + 0.5) * tile_w, (j + 0.5) * tile_h))
    layers.things = tuple(repeated)
    picture = pixels(layers.picture(outline=0.5, over=over))
    layers.things = original
    return picture


def plain(layers: Layers) -> Array:
    """The drawing itself."""
    return pixels(layers.picture())


LOOKS: dict[str | None, Callable[[Layers], Array]] = {
    None: plain,
    "3d-model": three_d_model,
    "analog-film": analog_film,
    "anime": anime,
    "cinematic": cinematic,
    "comic-book": comic_book,
    "digital-art": digital_art,
    "enhance": enhance,
    "fantasy-art": fantasy_art,
    "isometric": isometric,
    "line-art": line_art,
    "low-poly": low_poly,
    "modeling-compound": modeling_compound,
    "neon-punk": neon_punk,
    "origami": origami,
    "photographic": photographic,
    "pixel-art": pixel_art,
    "tile-texture": tile_texture,
}


def draw(scene: Scene) -> np.ndarray:
    """Paint a scene in its style: uint8 (H, W, 3), sRGB. Raises ValueError on a side under 16."""
    if min(scene.width, scene.height) < 16:
        raise ValueError(f"too small to draw: {scene.width} x {scene.height}")
    return image_of(LOOKS[scene.style](Layers(scene)))
