"""Drawn scenes in memory, made once from seeds: the data set is a program and a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from scripts.training.world.looks import draw
from scripts.training.world.scene import Scene, Split, sample_scene

Size = tuple[int, int]
"""(width, height) in pixels."""
PHOTOGRAPHS = (".jpg", ".jpeg", ".png")
PHOTOGRAPH_SIZES = (256, 640)
"""Least and most pixels that a photograph's shorter side is made for its crops, as uploads are."""
PHOTOGRAPH_SCALES = 12
"""Sizes that crops of one photograph are taken from."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Scenes of one size with their pictures, (N, 3, height, width) uint8."""

    scenes: list[Scene]
    pictures: torch.Tensor


def draw_scenes(
    count: int, size: Size, seed: int, *, split: Split = "train", styled: float = 0.5
) -> Drawn:
    """``count`` scenes of ``size``; the same seed draws the same set."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, *size, split=split, styled=styled) for _ in range(count)]
    pictures = np.empty((count, 3, size[1], size[0]), dtype=np.uint8)
    for i, scene in enumerate(scenes):
        pictures[i] = draw(scene).transpose(2, 0, 1)
    return Drawn(scenes, torch.from_numpy(pictures))


def crops(count: int, side: int, seed: int, sizes: Sequence[int], each: int = 4) -> torch.Tensor:
    """``count`` square crops (N, 3, side, side) uint8 from scenes of several sizes."""
    rng = np.random.default_rng(seed)
    found = np.empty((count, 3, side, side), dtype=np.uint8)
    for i in range(0, count, each):
        size = int(rng.choice(sizes))
        picture = draw(sample_scene(rng, size, size, styled=0.6)).transpose(2, 0, 1)
        for j in range(i, min(i + each, count)):
            y, x = rng.integers(0, size - side + 1, 2)
            found[j] = picture[:, y : y + side, x : x + side]
    return torch.from_numpy(found)


def photographs_in(folder: Path) -> list[Path]:
    """The photographs under ``folder``, by name. Raises FileNotFoundError where there is none."""
    files = sorted(one for one in folder.rglob("*") if one.suffix.lower() in PHOTOGRAPHS)
    if not files:
        raise FileNotFoundError(f"{folder} holds no photographs ({', '.join(PHOTOGRAPHS)})")
    return files


def photograph_crops(folder: Path, count: int, side: int, seed: int) -> torch.Tensor:
    """``count`` square crops (N, 3, side, side) uint8 of the photographs under ``folder``, of each
    as many, at widths of its shorter side from PHOTOGRAPH_SIZES."""
    files = photographs_in(folder)
    rng = np.random.default_rng(seed)
    found = np.empty((count, 3, side, side), dtype=np.uint8)
    which = np.sort(np.arange(count) % len(files))
    for number, file in enumerate(files):
        with Image.open(file) as opened:
            photograph = ImageOps.exif_transpose(opened).convert("RGB")
        at = np.flatnonzero(which == number)
        for part in np.array_split(at, PHOTOGRAPH_SCALES):
            short = int(rng.integers(*PHOTOGRAPH_SIZES))
            scale = max(short, side) / min(photograph.size)
            size = [max(round(scale * length), side) for length in photograph.size]
            picture = np.asarray(photograph.resize(size, Image.Resampling.LANCZOS))
            for i in part:
                y, x = (int(rng.integers(0, n - side + 1)) for n in picture.shape[:2])
                found[i] = picture[y : y + side, x : x + side].transpose(2, 0, 1)
    return torch.from_numpy(found)


def to_model(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as float32 in -1..1."""
    return pictures.float() / 127.5 - 1.0


def sheet(rows: Sequence[torch.Tensor], path: Path) -> None:
    """Write pictures, (N, 3, H, W) in -1..1 each row, as one PNG."""
    lines = [torch.cat(list(row.clamp(-1, 1)), dim=2) for row in rows]
    whole = ((torch.cat(lines, dim=1) + 1) * 127.5).round().byte()
    Image.fromarray(whole.permute(1, 2, 0).cpu().numpy()).save(path)
