"""The embedded model does what its prompts say, measured on a small fixed set.

`scripts/measure_embedded` measures the same on hundreds of pictures; the floors here are just under
what these few have, so that weights that have become worse are noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from models.bundle import ModelBundle
from models.loading.loader import load_bundle
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import CONTRACT_SAMPLERS, Sampler
from scripts.training.judge import Judge, load_judge, own_accuracy
from scripts.training.measures import (
    edits,
    from_noise,
    from_pictures,
    make,
    nights,
    reconstruction,
    request_for,
    right,
    shares,
    strength_ladder,
)
from scripts.training.world.looks import draw
from scripts.training.world.scene import COLOURS, Scene, Thing

pytestmark = pytest.mark.slow("weights")

JUDGE = Path(__file__).parents[1] / "data" / "judge.safetensors"
EDITS = 24
# Of 24 edits that each ask for one other colour, kind, background or style; 23 are right.
FLOOR = 0.91
# The mean of the four attributes' shares.
FLOOR_FROM_NOISE = 0.82
FLOOR_OF_A_SAMPLER = 0.74
FLOOR_OF_NIGHTS = 0.8
# dB of drawn scenes.
AUTOENCODER_FLOOR = 34.0
# Similarity to the input at image_strength 0.9.
KEPT_FLOOR = 0.95
# Of 120 drawings that no judge was trained on.
JUDGE_FLOORS = {"kind": 0.95, "colour": 0.86, "background": 0.90, "style": 0.93}
REPAINTS = (
    ("red", "blue"),
    ("green", "red"),
    ("red", "green"),
    ("blue", "red"),
    ("red", "purple"),
    ("blue", "yellow"),
)


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return load_bundle(device="cpu")


@pytest.fixture(scope="module")
def engine(bundle: ModelBundle) -> Iterator[Engine]:
    running = Engine(bundle, EngineConfig())
    running.start()
    yield running
    running.drain()


@pytest.fixture(scope="module")
def random_engine(bundle: ModelBundle) -> Iterator[Engine]:
    """The same model with the U-Net's weights drawn at random."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(bundle.unet.config).to(bundle.dtype)
    bare = unet.eval().requires_grad_(False)
    running = Engine(replace(bundle, name="random", unet=bare), EngineConfig())
    running.start()
    yield running
    running.drain()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(JUDGE, train_if_missing=False)


def share_right(engine: Engine, judge: Judge, count: int) -> float:
    """The share of edits whose changed attribute is judged as asked."""
    asked = edits(count, seed=500)
    requests = [
        request_for(edit.target, draw(edit.source), 600 + i, image_strength=0.35)
        for i, edit in enumerate(asked)
    ]
    found = right(judge, make(engine, requests), [edit.target for edit in asked])
    return float(np.mean([found[edit.changed][i] for i, edit in enumerate(asked)]))


def circle(colour: str) -> Scene:
    thing = Thing("circle", colour, 0.6, 0.5, 0.5)
    return Scene((thing,), "plain", None, 320, 320, seed=4)


def repainted(engine: Engine, cfg_scale: float) -> torch.Tensor:
    """Mean colour, 0..255, at the middle of circles asked to change colour: (pairs x seeds, 3)."""
    requests = [
        request_for(
            circle(asked), draw(circle(given)), seed, image_strength=0.35, cfg_scale=cfg_scale
        )
        for given, asked in REPAINTS
        for seed in (1, 2)
    ]
    middle = make(engine, requests)[:, :, 130:180, 130:180].mean(dim=(2, 3))
    return (middle + 1) * 127.5


def pull_to_asked(colours: torch.Tensor) -> float:
    """How far the prompt pulled the circles: 0 at the given colour, 1 at the one asked for.

    The part of the change in RGB that points from the one to the other. A high cfg_scale pulls
    beyond 1, to a purer colour than asked for.
    """
    pairs = [pair for pair in REPAINTS for _ in (1, 2)]
    given = torch.tensor([COLOURS[a] for a, _ in pairs], dtype=torch.float32)
    way = torch.tensor([COLOURS[b] for _, b in pairs], dtype=torch.float32) - given
    along = ((colours - given) * way).sum(dim=1) / way.pow(2).sum(dim=1)
    return float(along.mean())


def nearest(colours: torch.Tensor) -> list[str]:
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    return [tuple(COLOURS)[int(i)] for i in torch.cdist(colours, palette).argmin(dim=1)]


def test_edits_follow_the_prompt(engine: Engine, judge: Judge) -> None:
    assert share_right(engine, judge, EDITS) >= FLOOR


def test_pictures_from_noise_follow_the_prompt(engine: Engine, judge: Judge) -> None:
    found = shares(from_noise(engine, judge, 24))
    assert np.mean(list(found.values())) >= FLOOR_FROM_NOISE, found


@pytest.mark.parametrize("sampler", CONTRACT_SAMPLERS)
def test_each_sampler_follows_the_prompt(engine: Engine, judge: Judge, sampler: Sampler) -> None:
    found = shares(from_pictures(engine, judge, 12, sampler=sampler))
    assert np.mean(list(found.values())) >= FLOOR_OF_A_SAMPLER, found


def test_day_turns_into_night_at_a_high_image_strength(engine: Engine, judge: Judge) -> None:
    found = nights(engine, judge, 12, 0.75)
    assert np.mean([one.right("background") for one in found]) >= FLOOR_OF_NIGHTS


def test_the_autoencoder_gives_back_drawings(bundle: ModelBundle) -> None:
    assert reconstruction(bundle) >= AUTOENCODER_FLOOR


def test_random_weights_do_not_reach_the_floor(random_engine: Engine, judge: Judge) -> None:
    assert share_right(random_engine, judge, 12) < 0.65


def test_a_circle_takes_the_colour_asked_for_and_more_so_at_higher_cfg(
    engine: Engine, random_engine: Engine
) -> None:
    asked = [asked for _, asked in REPAINTS for _ in (1, 2)]
    strong, weak = repainted(engine, 7.0), repainted(engine, 1.0)
    hits = [a == b for a, b in zip(nearest(strong), asked, strict=True)]
    assert np.mean(hits) >= 0.8, nearest(strong)
    assert pull_to_asked(strong) > pull_to_asked(weak) + 0.03
    random = repainted(random_engine, 7.0)
    assert np.mean([a == b for a, b in zip(nearest(random), asked, strict=True)]) < 0.5


def test_a_higher_image_strength_keeps_more_of_the_picture(engine: Engine) -> None:
    ladder = strength_ladder(engine, 6)
    assert list(ladder) == [0.1, 0.35, 0.6, 0.9]
    assert all(less < more for less, more in pairwise(ladder.values())), ladder
    assert ladder[0.9] >= KEPT_FLOOR


def test_the_judge_reads_fresh_drawings(judge: Judge) -> None:
    own = own_accuracy(judge, 120)
    assert all(own[name] >= floor for name, floor in JUDGE_FLOORS.items()), own
