"""A server that is full, one that is too slow, and one that is told to stop."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.contract.conftest import KEY, QUICK, Client, contract_model
from tests.server.failures import assert_failure
from tests.server.server_process import running_server

LONG = {"prompt": "a", "width": 768, "height": 768, "steps": 50, "image_strength": 0, "seed": 1}


@pytest.mark.slow("operations")
def test_what_takes_too_long_for_the_limit_is_refused_at_once(
    tmp_path: Path, small_picture: bytes
) -> None:
    settings = {"model": contract_model(), "api_keys": KEY, "request_timeout": "1"}
    with running_server("server.cli", tmp_path, "serve", **settings) as server:
        server.wait_for("/health/ready", seconds=300)
        client, long = Client(server), {**LONG, "sampler": "K_HEUN"}
        # One a minute is let through, in case the prediction is wrong. It is not.
        assert_failure(client.post(picture=small_picture, **long), 504, "not finished within 1 s")
        refused = client.post(picture=small_picture, **long)
        message = assert_failure(refused, 400, "over the limit of 1 s")
        assert message.startswith("width, height, steps: 768 x 768 at 50 steps takes about ")
        assert "Retry-After" not in refused.headers


def lora(file: Path) -> Path:
    """A LoRA of the embedded model that changes a layer much."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
    generator = torch.Generator().manual_seed(0)
    shapes = {"lora_A": (4, 160), "lora_B": (160, 4)}
    factors = {
        f"unet.{layer}.{side}.weight": torch.randn(shape, generator=generator)
        for side, shape in shapes.items()
    }
    save_file(factors, file)
    return file


@pytest.mark.slow("operations")
def test_with_a_lora_busy_and_shutdown(
    client: Client, tmp_path: Path, small_picture: bytes
) -> None:
    plain = client
    settings = {
        "model": contract_model(),
        "api_keys": KEY,
        "max_queue": "1",
        "request_timeout": "3600",
        "grace_period": "1",
    }
    if contract_model() == "embedded":
        settings["loras"] = str(lora(tmp_path / "lora.safetensors"))
    with (
        running_server("server.cli", tmp_path, "serve", **settings) as server,
        ThreadPoolExecutor() as pool,
    ):
        client = Client(server)
        server.wait_for("/health/ready", seconds=300)
        if "loras" in settings:
            changed = client.ask(small_picture, **QUICK, seed=1)
            assert changed.png != plain.ask(small_picture, **QUICK, seed=1).png
        slow = pool.submit(client.post, picture=small_picture, **{**LONG, "sampler": "K_HEUN"})
        time.sleep(3.0)
        refused = client.post(picture=small_picture, prompt="a")
        assert_failure(refused, 503)
        # What is left of the slow one, in seconds: 99 evaluations of two rows take a while.
        assert int(refused.headers["Retry-After"]) >= 1
        assert server.get("/health/live").status_code == 200
        server.terminate()
        assert_failure(slow.result(), 503, "shutting down")
        assert server.exit_status() == 0, server.log
