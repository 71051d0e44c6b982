"""How well the embedded model does: reconstruction, adherence, strength and guidance.

Pictures are made by the server's own engine. Adherence is judged by `judge`, on held-out
combinations of kind, colour and background that training never drew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

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
    is_held_out,
    sample_scene,
)

SIDE = 320
EDITS = ("colour", "kind", "background", "style")


@dataclass(frozen=True)
class Edit:
    """An input scene and the scene that the prompt asks to make of it."""

    source: Scene
    target: Scene
    changed: str


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


def from_noise(
    engine: Engine, judge: Judge, count: int, seed: int = 31, cfg_scale: float = 7.0
) -> dict[str, float]:
    """The share judged right of pictures from noise alone; style among the styled ones."""
    scenes = held_out_scenes(count, seed)
    grey = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
    pictures = make(
        engine,
        [
            request_for(scene, grey, 1000 + i, image_strength=0.0, cfg_scale=cfg_scale)
            for i, scene in enumerate(scenes)
        ],
    )
    found = right(judge, pictures, scenes)
    styled = np.array([scene.style is not None for scene in scenes])
    shares = {name: float(found[name].mean()) for name in ("colour", "kind", "background")}
    return {**shares, "style": float(found["style"][styled].mean())}


def from_pictures(engine: Engine, judge: Judge, count: int, seed: int = 32) -> dict[str, float]:
    """The share of edits at image_strength 0.35 whose changed attribute is judged right."""
    asked = edits(count, seed)
    pictures = make(
        engine,
        [
            request_for(edit.target, draw(edit.source), 2000 + i, image_strength=0.35)
            for i, edit in enumerate(asked)
        ],
    )
    found = right(judge, pictures, [edit.target for edit in asked])
    return {
        name: float(np.mean([found[name][i] for i, e in enumerate(asked) if e.changed == name]))
        for name in EDITS
    }


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
    values = []
    for _ in range(count):
        scene = sample_scene(rng, SIDE, SIDE, split="held_out")
        x = to_model(torch.from_numpy(draw(scene)).permute(2, 0, 1)[None])
        with torch.inference_mode():
            y = bundle.vae.decode(bundle.vae.encode(x).latent_dist.mean).sample
        values.append(psnr(x, y))
    return float(np.mean(values))
