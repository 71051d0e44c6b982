"""From the device's memory and the settings to what the engine takes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from models.auxiliary.choose import choose_safety
from models.bundle import ModelBundle
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.engine.policy import make_policy
from pipelines.scheduler.batching import GroupKey, StepLimits
from scripts.checkpoints.without_weights import bundle_without_weights
from server import memory_plan
from server.cli.doctor import diagnose
from server.cli.main import app
from server.engine_service import load_model
from server.memory_plan import EXACT_ROWS, LARGEST, available_bytes, memory_policy
from server.settings import Settings
from tests.tiny_model import write_tiny_checker

pytestmark = pytest.mark.process

GIB = 2**30


@pytest.fixture(scope="module")
def full_size() -> ModelBundle:
    return bundle_without_weights()


def rows(limits: StepLimits, side: int) -> int:
    return limits.rows_for(GroupKey(side // 8, side // 8, 77, False))


def test_nothing_is_planned_on_an_unlimited_cpu(embedded: ModelBundle) -> None:
    policy = memory_policy(embedded, Settings())
    assert policy.limits == StepLimits() == make_policy(EngineConfig(), embedded).limits
    assert policy.exact_rows == EngineConfig().exact_rows == EXACT_ROWS
    assert policy.tile_above is None
    assert policy.plan is None
    assert not policy.too_small


def test_on_a_card_a_batch_invariant_step_holds_one_request(embedded: ModelBundle) -> None:
    on_a_card = replace(embedded, device=torch.device("cuda"))
    exact = EngineConfig(exact=True)
    assert make_policy(exact, on_a_card).limits == StepLimits(2, buckets=(2,), alone=True)
    assert make_policy(exact, embedded).limits == StepLimits(8, buckets=(8,))
    assert not make_policy(EngineConfig(), on_a_card).limits.alone


def test_a_threshold_alone_tiles_on_a_cpu(embedded: ModelBundle) -> None:
    policy = memory_policy(embedded, Settings(vae_tile_above=1.5))
    assert policy.tile_above == 1_500_000
    assert policy.limits == StepLimits() == make_policy(EngineConfig(), embedded).limits
    assert memory_policy(embedded, Settings(vae_tile_above=2.4)).tile_above is None


def test_a_limit_on_the_cpu_is_of_weights_and_work(embedded: ModelBundle) -> None:
    assert available_bytes(embedded, Settings()) is None
    available = available_bytes(embedded, Settings(memory_limit_mib=2048))
    assert embedded.clip is not None
    clip = sum(p.nbytes for p in embedded.clip.model.parameters())
    assert available == 2 * GIB - embedded.weight_bytes - clip
    large, small = (
        memory_policy(embedded, Settings(memory_limit_mib=mib)) for mib in (20_000, 500)
    )
    assert large.tile_above is None
    assert small.tile_above is not None
    assert small.tile_above < LARGEST
    assert rows(small.limits, 512) < rows(large.limits, 512)
    # All that can run at a time: two rows of each of max_running_requests.
    assert rows(large.limits, 320) == 2 * Settings().max_running_requests


def test_on_the_cpu_it_counts_all_that_is_loaded(embedded: ModelBundle, tmp_path: Path) -> None:
    checker = choose_safety(embedded, str(write_tiny_checker(tmp_path / "checker")))
    drawn = replace(embedded, preview_vae=embedded.vae, clip=None)
    parts = (embedded.unet, embedded.vae, embedded.vae, embedded.text_encoder, checker.checker)
    loaded = sum(p.nbytes for part in parts for p in part.parameters())
    settings = Settings(memory_limit_mib=2048)
    assert available_bytes(drawn, settings, checker) == 2 * GIB - loaded


def test_doctor_plans_with_what_the_server_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        device="cpu",
        memory_limit_mib=600,
        clip_model="none",
        safety="blur",
        safety_checker=str(write_tiny_checker(tmp_path / "checker")),
    )
    planned: list[int | None] = []
    count = memory_plan.available_bytes

    def keep(*parts: Any) -> int | None:
        planned.append(count(*parts))
        return planned[-1]

    monkeypatch.setattr(memory_plan, "available_bytes", keep)
    load_model(settings, warm_up=False)
    diagnose(settings)
    assert planned == [planned[0]] * 2


def test_stable_diffusion_on_a_card_of_8_gib(full_size: ModelBundle) -> None:
    policy = memory_policy(full_size, Settings(), free=8 * GIB - full_size.weight_bytes)
    assert not policy.too_small
    assert rows(policy.limits, 512) in (8, 16)
    assert rows(policy.limits, 768) == 4  # 7 would fit, and would be padded to 8
    assert rows(policy.limits, 1536) >= 2
    assert policy.tile_above is not None
    assert 1024**2 < policy.tile_above < LARGEST
    assert "rows at 512 x 512, 2 rows at 1536 x 1536; VAE in tiles above" in policy.in_words(8)
    # Each exact step is padded to the bucket, the largest pictures' too.
    assert policy.exact_rows == 2


def test_stable_diffusion_on_other_cards(full_size: ModelBundle) -> None:
    small = memory_policy(full_size, Settings(), free=2 * GIB)
    assert small.too_small
    assert small.in_words(8).endswith("too little for 1536 x 1536")
    large = memory_policy(full_size, Settings(), free=70 * GIB)
    assert large.tile_above is None
    assert large.exact_rows == EXACT_ROWS
    # No more than the largest step that is captured.
    assert rows(large.limits, 1536) == rows(large.limits, 512) == 16
    # Asked for where it is not needed.
    assert memory_policy(full_size, Settings(vae_tile_above=1), 70 * GIB).tile_above == 1_000_000


def test_the_engine_gets_it() -> None:
    settings = Settings(device="cpu", memory_limit_mib=600, vae_tile_above=0.5)
    engine = load_model(settings, warm_up=False).engine
    assert isinstance(engine, Engine)
    want = memory_policy(engine.bundle, settings)
    assert engine.bundle.vae_tile_above == 500_000
    assert make_policy(engine.config, engine.bundle).limits == want.limits != StepLimits()
    assert engine.config.exact_rows == want.exact_rows


def test_doctor_prints_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["doctor", "--device", "cpu"]
    output = CliRunner().invoke(app, command).output
    assert "plan       16 rows at 512 x 512, 2 rows at 1536 x 1536; VAE never in tiles" in output
    monkeypatch.setenv("IMG2IMG_MEMORY_LIMIT_MIB", "300")
    limited = CliRunner().invoke(app, command).output
    assert "at 512 x 512, 2 rows at 1536 x 1536; VAE in tiles above 0." in limited
