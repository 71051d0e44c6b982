"""The folder that ships: what is in it, how large it is, and that the field's own code loads it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from safetensors import safe_open
from transformers import CLIPModel

from models.bundle import ModelBundle
from models.loading.loader import EMBEDDED_FOLDER
from scripts.training.world.looks import draw
from scripts.training.world.scene import sample_scene
from tests.logged_warnings import no_logged_warnings

pytestmark = pytest.mark.process

MEGABYTE = 1_000_000


def test_the_folder_is_small_and_half_precision() -> None:
    weights = sorted(EMBEDDED_FOLDER.rglob("*.safetensors"))
    parts = {path.parent.name for path in weights}
    assert {"unet", "vae", "text_encoder", "clip"} <= parts
    assert sum(path.stat().st_size for path in weights) < 25 * MEGABYTE
    for path in weights:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                if tensor.is_floating_point():
                    assert tensor.dtype is torch.float16, f"{path.parent.name}: {name}"
                    assert bool(tensor.isfinite().all()), f"{path.parent.name}: {name}"


def test_a_card_and_a_licence_ship_with_it() -> None:
    card = (EMBEDDED_FOLDER / "README.md").read_text("utf-8")
    for heading in ("data", "size", "time", "licence", "cannot", "measures"):
        assert heading in card.lower(), heading
    assert (EMBEDDED_FOLDER / "LICENSE").stat().st_size > 200


def test_the_schedule_is_stable_diffusions() -> None:
    config = json.loads((EMBEDDED_FOLDER / "scheduler" / "scheduler_config.json").read_text())
    assert config["beta_schedule"] == "scaled_linear"
    assert (config["beta_start"], config["beta_end"]) == (0.00085, 0.012)
    assert config["num_train_timesteps"] == 1000
    assert config["steps_offset"] == 1
    assert config["set_alpha_to_one"] is False
    assert config["prediction_type"] == "epsilon"


def test_diffusers_loads_it_unchanged_and_draws() -> None:
    with no_logged_warnings():
        pipe = StableDiffusionImg2ImgPipeline.from_pretrained(EMBEDDED_FOLDER)
        clip = CLIPModel.from_pretrained(EMBEDDED_FOLDER / "clip")
    pipe.set_progress_bar_config(disable=True)
    assert clip.config.text_config.hidden_size == pipe.unet.config.cross_attention_dim
    made = pipe(
        "a blue circle",
        image=Image.new("RGB", (128, 128), (200, 40, 40)),
        strength=0.65,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images[0]
    assert made.shape == (128, 128, 3)
    assert np.isfinite(made).all()


def test_latents_have_unit_variance(embedded: ModelBundle) -> None:
    rng = np.random.default_rng(400)
    pictures = np.stack([draw(sample_scene(rng, 192, 192)) for _ in range(24)])
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        posterior = embedded.vae.encode(x).latent_dist
    latents = posterior.mean * embedded.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.15)
    # The posterior is narrow: what is encoded is the picture, not noise.
    assert float(posterior.std.mean() * embedded.scaling_factor) < 0.2
