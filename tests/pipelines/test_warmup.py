"""What is made ready before the first request, where a part of it fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from models.acceleration.cuda_graphs import Capturer, EagerCapturer
from models.acceleration.modes import Acceleration
from models.bundle import CompiledParts, ModelBundle
from models.spec import AccelerationMode
from pipelines.engine import warmup as fast_path
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.config import EngineConfig
from pipelines.engine.engine import Engine
from pipelines.engine.policy import make_policy


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("failing", ["unet", "text_encoder"])
@torch.inference_mode()
def test_steps_are_captured_without_the_compiled_parts_where_one_fails(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch, failing: str, exact: bool
) -> None:
    capturer, bundle = EagerCapturer(), replace(tiny, facts={})

    def fail(*_: Any, **__: Any) -> Any:
        raise TorchDynamoException("ptxas failed")

    def compiles(bundle: ModelBundle, _: Acceleration, sizes: Any, rows: Any, __: bool) -> None:
        parts = CompiledParts(
            sizes=frozenset(sizes),
            rows=frozenset(rows),
            text_length=bundle.text_length,
            unet=bundle.unet,
            text_encoder=bundle.text_encoder,
            encode=fail,
            decode=fail,
        )
        bundle.compiled = replace(parts, **{failing: fail})

    def make(acceleration: Acceleration, device: torch.device) -> Capturer:
        return capturer

    monkeypatch.setattr(fast_path, "accelerate", compiles)
    monkeypatch.setattr(fast_path, "make_capturer", make)
    asked = Acceleration(AccelerationMode.COMPILE, graphs=True, compiles=True)
    config = EngineConfig(acceleration=asked, capture_sizes=[(64, 64)], exact=exact)
    policy = make_policy(config, bundle)
    buckets = policy.limits.buckets
    runner = fast_path.make_runner(bundle, config, buckets)
    fast_path.warm_up(runner, config, policy)
    assert bundle.compiled is None
    counts = runner.denoiser.graphs
    # Those of steps over compiled parts are gone.
    assert counts.captures == len(buckets) * (1 if failing == "unet" else 2)
    fallbacks, pool = counts.fallbacks, runner.pools.enter(runner.hot[0])
    for rows in buckets:
        runner.denoiser.step(pool, fast_path.dummy_evaluations(rows, pool.scratch), rows)
    assert counts.fallbacks == fallbacks


def test_the_warm_up_is_counted_nowhere(tiny: ModelBundle) -> None:
    engine = Engine(tiny, EngineConfig(), costs=guessed_costs())
    engine.start()
    try:
        now = engine.snapshot()
        assert now.statistics.images == 0
        assert {name: (c.hits, c.misses) for name, c in now.caches.items()} == {
            "prompts": (0, 0),
            "pictures": (0, 0),
        }
    finally:
        engine.drain(grace=0)
