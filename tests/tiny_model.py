"""A tiny Stable Diffusion of random weights, of the very classes of the real one.

For tests of mechanics that need no meaning: it is made in a second, and runs in milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from models.bundle import ModelBundle
from models.clip import ClipModel
from models.loading.clip import load_clip
from models.loading.loader import load_folder

TEXT_WIDTH = 32


def byte_alphabet() -> list[str]:
    """The printable stand-ins of the 256 bytes, as in CLIP's vocabulary."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [byte for byte in range(256) if byte not in kept]
    letters = {byte: chr(byte) for byte in kept}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(shifted)}
    return [letters[byte] for byte in range(256)]


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer of single bytes, without a merge."""
    folder.mkdir(parents=True)
    letters = byte_alphabet()
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_tiny_model(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write the folder in the diffusers layout; weights are float32."""
    torch.manual_seed(seed)
    write_tokenizer(folder / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )
    for name, part in {"unet": unet, "vae": vae, "text_encoder": text_encoder}.items():
        part.save_pretrained(folder / name, safe_serialization=True)
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_bundle(folder: Path, dtype: torch.dtype = torch.float32) -> ModelBundle:
    """The tiny model, loaded on the CPU."""
    return load_folder(folder, name="tiny", device=torch.device("cpu"), dtype=dtype)


def write_tiny_clip(folder: Path, seed: int = 1) -> Path:
    """A CLIP of random weights with the tiny model's vocabulary, for 32-pixel pictures."""
    torch.manual_seed(seed)
    tower = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": TEXT_WIDTH,
    }
    text = {
        **tower,
        "vocab_size": 514,
        "max_position_embeddings": 77,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    }
    vision = {**tower, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH)
    CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_clip(folder: Path, bundle: ModelBundle) -> ClipModel:
    """The tiny CLIP, loaded in float32 on the CPU."""
    return load_clip(
        folder,
        name="tiny-clip",
        device=bundle.device,
        dtype=torch.float32,
        tokenizer=bundle.tokenizer,
    )


def write_tiny_checker(folder: Path, seed: int = 2) -> Path:
    """A safety checker of random weights for 32-pixel pictures, whose concepts nothing is near.

    A test plants its own concepts: `concept_embeds` and their thresholds.
    """
    torch.manual_seed(seed)
    vision = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    config = CLIPConfig(vision_config=vision, projection_dim=TEXT_WIDTH)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds.data = torch.randn(17, TEXT_WIDTH)
    checker.special_care_embeds.data = torch.randn(3, TEXT_WIDTH)
    checker.save_pretrained(folder, safe_serialization=True)
    return folder
