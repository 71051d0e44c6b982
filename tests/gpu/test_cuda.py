"""What only a CUDA device can show. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.loader import load_bundle
from pipelines.engine import Engine
from pipelines.request import GenerationRequest, Pixels, Sampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_crowd_on_cuda_makes_the_pictures_of_the_cpu(
    tiny_folder: Path, picture: Pixels, dtype: str
) -> None:
    tolerance = {"float32": 2.0, "float16": 6.0, "bfloat16": 24.0}[dtype]
    requests = [
        GenerationRequest(picture, "a cat", "blurry", 0.5, 5.0, sampler, steps=12, seed=i + 1)
        for i, sampler in enumerate(Sampler)
    ]
    pictures = {}
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        engine = Engine(load_bundle(str(tiny_folder), device=device, dtype=kind))
        engine.start()
        handles = [engine.submit(request) for request in requests]
        pictures[device] = [handle.wait(300).image.astype(int) for handle in handles]
        engine.drain()
    for on_cpu, on_cuda in zip(pictures["cpu"], pictures["cuda"], strict=True):
        assert np.abs(on_cpu - on_cuda).mean() <= tolerance
