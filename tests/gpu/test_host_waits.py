"""To launch a unit of work never waits for the device: it runs one unit ahead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.engine.model_runner import Launched, ModelRunner
from pipelines.request import GenerationRequest, MaskedContent, Sampler
from pipelines.scheduler.work import Work
from tests.gpu.rig import Rig, images
from tests.host_waits import no_host_waits


def one_of_each_kind(rig: Rig, seed: int) -> list[GenerationRequest]:
    """Requests that share no text or picture with those of another seed.

    None is guided by CLIP, which reads its own loss.
    """
    plain = rig.ask(seed)
    mask = np.zeros((rig.size, rig.size), dtype=np.uint8)
    mask[:, : rig.size // 2] = 255
    noise = MaskedContent.LATENT_NOISE
    return [
        plain,
        rig.ask(seed, rig.size + 64),
        replace(plain, cfg_scale=1.0),
        replace(plain, prompt=f"a (red:1.4) house, {seed}", negative_prompt=f"[blurry] {seed}"),
        replace(plain, prompt=f"a house, {seed} " * 50),
        replace(plain, sampler=Sampler.K_EULER_ANCESTRAL),
        replace(plain, variation_seed=3, variation_strength=0.5),
        replace(plain, mask=mask),
        replace(plain, mask=mask, masked_content=noise),
        replace(plain, tile=True),
        replace(plain, previews=True),
        replace(plain, from_noise=True),
    ]


def test_to_launch_a_unit_waits_for_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = ModelRunner.launch

    def watched(self: ModelRunner, work: Work) -> Launched:
        with no_host_waits(rig.device):
            return launch(self, work)

    with rig.engine(rig.fast(rig.bundle()), row_buckets=(2, 4)) as engine:
        for seed in range(1, 7):  # the first ones are captured, and fit the map of previews
            images([engine.submit(one) for one in one_of_each_kind(rig, seed)])
        monkeypatch.setattr(ModelRunner, "launch", watched)
        for one in one_of_each_kind(rig, 9):
            images([engine.submit(one)])
