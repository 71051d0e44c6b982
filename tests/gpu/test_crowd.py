"""A crowd of every sampler on the card makes the pictures of the CPU, in each dtype."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.loader import load_bundle
from pipelines.engine import Engine, EngineConfig
from pipelines.fast_path import FastPath
from pipelines.request import GenerationRequest, Pixels, Sampler
from tests.gpu.rig import GRAPHS, Rig, images

TOLERANCE = {"float32": 2.0, "float16": 6.0, "bfloat16": 24.0}
"""Mean difference of a picture's bytes."""


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tile", [False, True], ids=["plain", "circular"])
def test_a_crowd_makes_the_pictures_of_the_cpu(
    rig: Rig, tiny_folder: Path, picture: Pixels, dtype: str, tile: bool
) -> None:
    if rig.narrow and (tile or dtype != "float32"):
        pytest.skip("a card's")
    requests = [
        GenerationRequest(picture, "a cat", "blurry", 0.5, 5.0, sampler, steps=12, seed=i + 1)
        for i, sampler in enumerate(list(Sampler)[:3] if rig.narrow else Sampler)
    ]
    requests = [replace(request, tile=tile) for request in requests]
    plain = Engine(load_bundle(str(tiny_folder), device="cpu", dtype="float32"))
    plain.start()
    want = images([plain.submit(request) for request in requests])
    plain.drain()
    bundle = load_bundle(str(tiny_folder), device=rig.device.type, dtype=dtype)
    engine = Engine(bundle, EngineConfig(fast=FastPath(GRAPHS, [(320, 320)])))
    engine.start()
    got = images([engine.submit(request) for request in requests])
    engine.drain()
    for one, other in zip(got, want, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).mean() <= TOLERANCE[dtype]
