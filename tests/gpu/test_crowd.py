"""A crowd of every sampler on the card makes the pictures of the CPU, in each dtype."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.bundle import ModelBundle
from models.loading.loader import load_bundle
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import CONTRACT_SAMPLERS, GenerationRequest, Pixels
from tests.gpu.rig import GRAPHS, Rig, images

TOLERANCE = {"float32": 2.0, "float16": 6.0, "bfloat16": 24.0}
"""Mean difference of a picture's bytes."""


def crowd(rig: Rig, picture: Pixels, tile: bool) -> list[GenerationRequest]:
    """A request of each sampler; without a card, of a few."""
    samplers = list(CONTRACT_SAMPLERS)[:3] if rig.narrow else list(CONTRACT_SAMPLERS)
    return [
        GenerationRequest(
            picture, "a cat", "blurry", 0.5, 5.0, sampler, steps=12, seed=i + 1, tile=tile
        )
        for i, sampler in enumerate(samplers)
    ]


@pytest.fixture(scope="module")
def plain(tiny: ModelBundle) -> Iterator[Engine]:
    """What the card is held against: the CPU, nothing accelerated."""
    engine = Engine(tiny, EngineConfig(warm_up=False), guessed_costs())
    engine.start()
    yield engine
    engine.drain()


@pytest.mark.parametrize("tile", [False, True], ids=["plain", "circular"])
def test_a_crowd_makes_the_pictures_of_the_cpu(
    rig: Rig, plain: Engine, tiny_folder: Path, picture: Pixels, tile: bool
) -> None:
    requests = crowd(rig, picture, tile)
    want = images([plain.submit(request) for request in requests])
    for dtype, tolerance in TOLERANCE.items():
        if rig.narrow and dtype != "float32":
            continue  # those of a card
        bundle = load_bundle(str(tiny_folder), device=rig.device.type, dtype=dtype)
        config = EngineConfig(
            acceleration=GRAPHS, capture_sizes=[(picture.shape[1], picture.shape[0])]
        )
        engine = Engine(bundle, config, guessed_costs())
        engine.start()
        got = images([engine.submit(request) for request in requests])
        engine.drain()
        for one, other in zip(got, want, strict=True):
            difference = np.abs(one.astype(int) - other.astype(int)).mean()
            assert difference <= tolerance, dtype
