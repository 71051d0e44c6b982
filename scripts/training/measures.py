"""How well the embedded model does: reconstruction, adherence, strength and guidance.

Pictures are made by the server's own engine. Adherence is judged by `judge`, on held-out
combinations of kind, colour and background that training never drew. A picture that was judged
keeps what was asked for and what was seen, so that `by_class` and others can say what fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from models.bundle import ModelBundle
from pipelines.engine.engine import Engine
from pipelines.prompt.styles import apply_style
from pipelines.request import GenerationRequest, Pixels, Sampler
from scripts.training.data import to_model
from scripts.training.judge import LABELS, Judge, labels_of
from scripts.training.vae import psnr
from scripts.training.world.captions import plain_caption
from scripts.training.world.looks import draw
from scripts.training.world.scene import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    STYLES,
    Scene,
    Thing,
    is_held_out,
    sample_scene,
)

SIDE = 320
EDITS = ("colour", "kind", "background", "style")
NOISE_SEED, EDIT_SEED = 31, 32

Targets = tuple[Sequence[Scene], Sequence[Sequence[str]]]
"""Scenes that are asked for, and the attributes of each that are judged."""


@dataclass(frozen=True)
class Edit:
    """An input scene and the scene that the prompt asks to make of it."""

    source: Scene
    target: Scene
    changed: str


@dataclass(frozen=True)
class Judged:
    """Of each attribute that a picture was asked for, the class wanted and the class seen."""

    wanted: dict[str, str | None]
    seen: dict[str, str | None]

    def right(self, attribute: str) -> bool:
        """Whether the picture shows of ``attribute`` what was asked for."""
        return self.wanted[attribute] == self.seen[attribute]


def held_out_scenes(count: int, seed: int, *, styled: float = 0.5) -> list[Scene]:
    """Scenes of one thing, whose combination training never drew."""
    rng = np.random.default_rng(seed)
    return [
        sample_scene(rng, SIDE, SIDE, split="held_out", styled=styled, framing="medium", count=1)
        for _ in range(count)
    ]


def edits(count: int, seed: int) -> list[Edit]:
    """Edits that end on a held-out combination; each changes one attribute, all four as often."""
    rng = np.random.default_rng(seed)
    found = []
    for i, target in enumerate(held_out_scenes(count, seed, styled=0.0)):
        changed = EDITS[i % len(EDITS)]
        thing = target.things[0]
        while True:
            source = target
            if changed == "colour":
                other = replace(thing, colour=str(rng.choice(list(COLOURS))))
                source = replace(target, things=(other,))
            elif changed == "kind":
                source = replace(target, things=(replace(thing, kind=str(rng.choice(OBJECTS))),))
            elif changed == "background":
                source = replace(target, background=str(rng.choice(BACKGROUNDS)))
            else:
                target = replace(target, style=str(rng.choice(STYLES)))
            first = source.things[0]
            if source != target and (
                changed == "style" or not is_held_out(first.kind, first.colour, source.background)
            ):
                break
        found.append(Edit(source, target, changed))
    return found


def request_for(
    scene: Scene,
    image: Pixels,
    seed: int,
    *,
    image_strength: float,
    cfg_scale: float = 7.0,
    steps: int = 20,
    sampler: Sampler = Sampler.K_DPMPP_2M,
) -> GenerationRequest:
    """What a client would ask to get ``scene``: its plain caption and its style preset."""
    styled = apply_style(scene.style, plain_caption(replace(scene, style=None)))
    return GenerationRequest(
        image,
        styled.prompt,
        styled.negative_prompt,
        image_strength=image_strength,
        cfg_scale=cfg_scale,
        sampler=sampler,
        steps=steps,
        seed=seed,
        tile=styled.tile,
    )


def make(engine: Engine, requests: Sequence[GenerationRequest]) -> torch.Tensor:
    """The pictures, (N, 3, H, W) in -1..1; the engine batches them as it would for many users."""
    images = []
    for start in range(0, len(requests), 16):
        handles = [engine.submit(request) for request in requests[start : start + 16]]
        images += [handle.wait().image for handle in handles]
    return to_model(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))


def right(judge: Judge, pictures: torch.Tensor, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """For each attribute, which pictures show what their scene has, (N,) bool."""
    verdicts = judge.verdicts(pictures)
    wanted = [labels_of(scene) for scene in scenes]
    return {
        name: verdicts[name].numpy() == np.array([one[name] for one in wanted]) for name in LABELS
    }


def judged(
    judge: Judge, pictures: torch.Tensor, scenes: Sequence[Scene], asked: Sequence[Sequence[str]]
) -> list[Judged]:
    """What ``judge`` sees of the attributes ``asked`` for in each picture."""
    verdicts = judge.verdicts(pictures)
    found = []
    for i, (scene, attributes) in enumerate(zip(scenes, asked, strict=True)):
        labels = labels_of(scene)
        wanted = {name: LABELS[name][labels[name]] for name in attributes}
        seen = {name: LABELS[name][int(verdicts[name][i])] for name in attributes}
        found.append(Judged(wanted, seen))
    return found


def shares(pictures: Iterable[Judged]) -> dict[str, float]:
    """The share right of each attribute, among the pictures that were asked for it."""
    pictures = list(pictures)
    return {
        name: float(np.mean([one.right(name) for one in pictures if name in one.wanted]))
        for name in EDITS
    }


def by_class(pictures: Iterable[Judged], attribute: str) -> dict[str, list[Judged]]:
    """The pictures that were asked for each class of ``attribute``, in order of their names."""
    found: dict[str, list[Judged]] = {}
    for one in pictures:
        if name := one.wanted.get(attribute):
            found.setdefault(name, []).append(one)
    return dict(sorted(found.items()))


def of_edits(asked: Sequence[Edit]) -> Targets:
    """The scenes that edits ask for, of which the changed attribute is judged."""
    return [edit.target for edit in asked], [[edit.changed] for edit in asked]


def of_scenes(scenes: Sequence[Scene]) -> Targets:
    """Scenes that are asked for whole, judged in all; style where they have one."""
    return scenes, [EDITS if scene.style else EDITS[:3] for scene in scenes]


def from_drawings(judge: Judge, targets: Targets) -> list[Judged]:
    """What ``judge`` sees of the drawings that are asked for themselves: no model is as good."""
    found = []
    for scene, attributes in zip(*targets, strict=True):
        picture = to_model(torch.from_numpy(draw(scene)).permute(2, 0, 1)[None])
        found += judged(judge, picture, [scene], [attributes])
    return found


def from_noise(
    engine: Engine, judge: Judge, count: int, seed: int = NOISE_SEED, cfg_scale: float = 7.0
) -> list[Judged]:
    """Pictures from noise alone, judged as `of_scenes` says."""
    scenes = held_out_scenes(count, seed)
    grey = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
    requests = [
        request_for(scene, grey, 1000 + i, image_strength=0.0, cfg_scale=cfg_scale)
        for i, scene in enumerate(scenes)
    ]
    return judged(judge, make(engine, requests), *of_scenes(scenes))


def from_pictures(
    engine: Engine,
    judge: Judge,
    count: int,
    seed: int = EDIT_SEED,
    *,
    image_strength: float = 0.35,
    sampler: Sampler = Sampler.K_DPMPP_2M,
) -> list[Judged]:
    """Edits, judged as `of_edits` says."""
    asked = edits(count, seed)
    requests = [
        request_for(
            edit.target,
            draw(edit.source),
            2000 + i,
            image_strength=image_strength,
            sampler=sampler,
        )
        for i, edit in enumerate(asked)
    ]
    return judged(judge, make(engine, requests), *of_edits(asked))


def nights(engine: Engine, judge: Judge, count: int, image_strength: float) -> list[Judged]:
    """Edits of a picture by day into a held-out one at night, of which the background is judged."""
    asked = night_edits(count)
    requests = [
        request_for(edit.target, draw(edit.source), 4000 + i, image_strength=image_strength)
        for i, edit in enumerate(asked)
    ]
    return judged(judge, make(engine, requests), *of_edits(asked))


def night_edits(count: int) -> list[Edit]:
    """Edits of a picture by day into a held-out one at night."""
    rng = np.random.default_rng(35)
    found: list[Edit] = []
    while len(found) < count:
        scene = sample_scene(rng, SIDE, SIDE, styled=0, framing="medium", count=1)
        thing = scene.things[0]
        if scene.background != "night" and is_held_out(thing.kind, thing.colour, "night"):
            found.append(Edit(scene, replace(scene, background="night"), "background"))
    return found


def of_things(
    engine: Engine | None, judge: Judge, things: int, count: int, seed: int = 36
) -> list[Judged]:
    """Edits of scenes of several things, each giving one thing another colour or kind.

    The judge knows one thing to a picture: it sees the square around the changed one, which is
    where the picture before had it. Without an ``engine`` it judges the drawing that was asked for.
    """
    rng = np.random.default_rng([seed, things])
    sources, targets = [], []
    for i in range(count):
        source = sample_scene(rng, SIDE, SIDE, styled=0.0, framing="medium", count=things)
        first = source.things[0]
        values = tuple(COLOURS) if i % 2 else OBJECTS
        name = "colour" if i % 2 else "kind"
        others = [value for value in values if value != getattr(first, name)]
        value = str(rng.choice(others))
        changed = replace(first, colour=value) if i % 2 else replace(first, kind=value)
        sources.append(source)
        targets.append(replace(source, things=(changed, *source.things[1:])))
    if engine is None:
        drawn = np.stack([draw(scene) for scene in targets]).transpose(0, 3, 1, 2)
        pictures = to_model(torch.from_numpy(drawn))
    else:
        requests = [
            request_for(target, draw(source), 5000 + i, image_strength=0.35)
            for i, (source, target) in enumerate(zip(sources, targets, strict=True))
        ]
        pictures = make(engine, requests)
    squares = [_around(one, scene.things[0]) for one, scene in zip(pictures, targets, strict=True)]
    asked = [["colour"] if i % 2 else ["kind"] for i in range(count)]
    return judged(judge, torch.stack(squares), targets, asked)


def _around(picture: torch.Tensor, thing: Thing) -> torch.Tensor:
    """The square around a thing and a quarter of its size more, (3, 128, 128)."""
    _, height, width = picture.shape
    side = min(round(thing.size * 1.25 * min(height, width)), height, width)
    left = min(max(round(thing.x * width - side / 2), 0), width - side)
    top = min(max(round(thing.y * height - side / 2), 0), height - side)
    square = picture[None, :, top : top + side, left : left + side]
    return F.interpolate(square, (128, 128), mode="area")[0]


def strength_ladder(engine: Engine, count: int, seed: int = 33) -> dict[float, float]:
    """Mean similarity to the input (1 - mean absolute difference / 255) at four strengths."""
    asked = edits(count, seed)
    ladder = {}
    for image_strength in (0.1, 0.35, 0.6, 0.9):
        inputs = [draw(edit.source) for edit in asked]
        pictures = make(
            engine,
            [
                request_for(edit.target, image, 3000 + i, image_strength=image_strength)
                for i, (edit, image) in enumerate(zip(asked, inputs, strict=True))
            ],
        )
        sent = to_model(torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2))
        ladder[image_strength] = 1 - float((pictures - sent).abs().mean()) / 2
    return ladder


def reconstruction(bundle: ModelBundle, count: int = 32, seed: int = 34) -> float:
    """PSNR in dB of held-out scenes at 320 x 320 through the autoencoder."""
    rng = np.random.default_rng(seed)
    scenes = (sample_scene(rng, SIDE, SIDE, split="held_out") for _ in range(count))
    return float(np.mean([_reconstructed(bundle, draw(scene)) for scene in scenes]))


def photograph_reconstruction(bundle: ModelBundle, file: Path, side: int) -> float:
    """PSNR in dB of the photograph's middle at ``side`` x ``side`` through the autoencoder."""
    with Image.open(file) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    return _reconstructed(bundle, np.asarray(ImageOps.fit(upright, (side, side))))


def _reconstructed(bundle: ModelBundle, picture: np.ndarray) -> float:
    """PSNR in dB of a uint8 picture (h, w, 3)."""
    x = to_model(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])
    with torch.inference_mode():
        latents = bundle.vae.encode(x.to(bundle.dtype)).latent_dist.mean
        return psnr(x, bundle.vae.decode(latents).sample.float())
