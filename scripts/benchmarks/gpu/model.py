"""A Stable Diffusion 1.5 of full size and random weights (speed does not depend on values).

It is made on the device in float32; every part of a run takes copies of its own in the dtype that
it needs. On the disk it is written once, for the processes that serve.
"""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from models.bundle import ModelBundle
from models.loading.checkpoint import SD15_FOLDER
from models.loading.parts import read_config
from pipelines.request import GenerationRequest, Pixels, Sampler
from pipelines.samplers.schedules import make_scheduler
from scripts.benchmarks.gpu.device import device, half

NARROW_PARTS: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 64, 64, 64],
        "cross_attention_dim": 64,
        "attention_head_dim": 2,
        "layers_per_block": 1,
        "norm_num_groups": 16,
    },
    "vae": {"block_out_channels": [8, 16, 16, 16], "layers_per_block": 1, "norm_num_groups": 8},
    "text_encoder": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}


def make_parts(narrow: bool) -> dict[str, Any]:
    """Return U-Net, VAE and text encoder of Stable Diffusion 1.5, or narrow ones of as many levels,
    with random weights on torch's default device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    config = {
        name: read_config(SD15_FOLDER / name) | (fewer if narrow else {})
        for name, fewer in NARROW_PARTS.items()
    }
    return {
        "unet": UNet2DConditionModel.from_config(config["unet"]),
        "vae": AutoencoderKL.from_config(config["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**config["text_encoder"])),
    }


class RandomModel:
    """The model of a run."""

    def __init__(self, narrow: bool = False) -> None:
        self.narrow = narrow

    @cached_property
    def parts(self) -> dict[str, Any]:
        """U-Net, VAE and text encoder in float32 on the device."""
        torch.manual_seed(0)
        # Ordinary tensors whoever asks first: all copies are made of these.
        with torch.inference_mode(False), torch.device(device()):
            parts = make_parts(self.narrow)
            _give_range(parts["unet"], parts["vae"])
        return {name: part.eval().requires_grad_(False) for name, part in parts.items()}

    def bundle(self, dtype: torch.dtype) -> ModelBundle:
        """Return a copy as the engine takes it."""
        from transformers import CLIPTokenizer

        # Converted one at a time, so that a second float32 copy is never whole.
        with torch.inference_mode(False):
            parts = {name: deepcopy(part).to(dtype) for name, part in self.parts.items()}
            for name in ("unet", "vae"):
                parts[name] = parts[name].to(memory_format=torch.channels_last)
        return ModelBundle(
            name="random weights",
            tokenizer=CLIPTokenizer.from_pretrained(SD15_FOLDER / "tokenizer"),
            scheduler_config=dict(make_scheduler(Sampler.DDIM).config),
            device=device(),
            dtype=dtype,
            **parts,
        )

    def write(self, folder: Path) -> None:
        """Write it in the served dtype as a folder in diffusers' layout."""
        shutil.copytree(SD15_FOLDER / "tokenizer", folder / "tokenizer")
        for name, part in self.parts.items():
            copy = deepcopy(part).to(half())
            copy.save_pretrained(folder / name, safe_serialization=True)
            del copy
        make_scheduler(Sampler.DDIM).save_pretrained(folder / "scheduler")
        index = json.loads((SD15_FOLDER / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        nothing = ("safety_checker", "feature_extractor", "image_encoder")
        index |= {name: [None, None] for name in nothing} | {"requires_safety_checker": False}
        (folder / "model_index.json").write_text(json.dumps(index))


def _give_range(unet: Any, vae: Any) -> None:
    """Scale the last layers: eps of unit variance and pictures that fill their range. As they are
    initialised all pictures would be grey, and any two of them alike."""
    with torch.no_grad():
        latents = torch.randn(2, 4, 32, 32)
        text = torch.randn(2, 77, unet.config.cross_attention_dim)
        eps = unet(latents, torch.tensor(500), encoder_hidden_states=text).sample
        unet.conv_out.weight /= eps.std()
        picture = vae.decode(latents).sample
        vae.decoder.conv_out.weight *= 0.5 / picture.std()
        vae.decoder.conv_out.bias.zero_()


def make_pipeline(bundle: ModelBundle) -> Any:
    """Return diffusers' pipeline over a bundle's modules, as a user would write it."""
    from diffusers import StableDiffusionImg2ImgPipeline

    pipeline = StableDiffusionImg2ImgPipeline(
        vae=bundle.vae,
        text_encoder=bundle.text_encoder,
        tokenizer=bundle.tokenizer,
        unet=bundle.unet,
        scheduler=make_scheduler(Sampler.DDIM),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_pipeline(pipeline: Any, request: GenerationRequest) -> Pixels:
    """Return a request's picture as a user of diffusers would make it, (height, width, 3) uint8."""
    import numpy as np

    pipeline.scheduler = make_scheduler(request.sampler)
    made = pipeline(
        prompt=request.prompt,
        image=Image.fromarray(request.image),
        strength=1 - request.image_strength,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        generator=torch.Generator().manual_seed(request.seed),
    ).images[0]
    return np.asarray(made)
