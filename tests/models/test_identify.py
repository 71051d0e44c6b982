"""Every kind of file that is no Stable Diffusion 1.x checkpoint is named for what it is."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.loading.identify import Contents, identify
from models.loading.loader import ModelLoadError, ModelSpec, load_model
from models.loading.weights_file import WeightsFile

UNET = "model.diffusion_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
TO_K = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
CLIP = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"

KINDS: list[tuple[str, Contents, dict[str, tuple[int, ...]], str]] = [
    ("inpainting", Contents.INPAINTING, {CONV_IN: (8, 9, 3, 3), TO_K: (8, 768)}, "9 channels"),
    ("pix2pix", Contents.PIX2PIX, {CONV_IN: (8, 8, 3, 3), TO_K: (8, 768)}, "InstructPix2Pix"),
    ("depth", Contents.OTHER_CHANNELS, {CONV_IN: (8, 5, 3, 3), TO_K: (8, 768)}, "4 channels"),
    ("sd2", Contents.SD2, {CONV_IN: (8, 4, 3, 3), TO_K: (8, 1024)}, "Stable Diffusion 2"),
    ("sdxl", Contents.SDXL, {CONV_IN: (8, 4, 3, 3), TO_K: (8, 2048)}, "Stable Diffusion XL"),
    (
        "sdxl by its text encoders",
        Contents.SDXL,
        {CONV_IN: (8, 4, 3, 3), "conditioner.embedders.1.model.ln_final.weight": (8,)},
        "Stable Diffusion XL",
    ),
    ("refiner", Contents.SDXL, {CONV_IN: (8, 4, 3, 3), TO_K: (8, 1280)}, "XL"),
    ("sd3", Contents.SD3, {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (8, 8)}, "Diffusion 3"),
    ("flux", Contents.FLUX, {"double_blocks.0.img_attn.qkv.weight": (8, 8)}, "Flux"),
    (
        "kohya lora",
        Contents.LORA,
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)},
        "IMG2IMG_LORAS",
    ),
    ("peft lora", Contents.LORA, {"unet.mid_block.x.to_q.lora_A.weight": (4, 8)}, "IMG2IMG_LORAS"),
    (
        "old lora",
        Contents.LORA,
        {"unet.mid_block.x.attn1.processor.to_q_lora.down.weight": (4, 8)},
        "IMG2IMG_LORAS",
    ),
    ("loha", Contents.LYCORIS, {"lora_unet_x.hada_w1_a": (4, 4)}, "LyCORIS"),
    ("dora", Contents.LYCORIS, {"lora_unet_x.dora_scale": (4,)}, "LyCORIS"),
    (
        "controlnet",
        Contents.CONTROLNET,
        {"control_model.input_hint_block.0.weight": (8,)},
        "Control",
    ),
    (
        "controlnet of diffusers",
        Contents.CONTROLNET,
        {"controlnet_cond_embedding.conv_in.weight": (8,), "conv_in.weight": (8, 4, 3, 3)},
        "ControlNet",
    ),
    ("ip-adapter", Contents.ADAPTER, {"image_proj.proj.weight": (8, 8)}, "adapter"),
    ("embedding", Contents.EMBEDDING, {"emb_params": (2, 768)}, "IMG2IMG_EMBEDDINGS"),
    ("embedding of diffusers", Contents.EMBEDDING, {"<cat-toy>": (768,)}, "IMG2IMG_EMBEDDINGS"),
    (
        "vae",
        Contents.LDM_VAE,
        {"decoder.mid.block_1.conv1.weight": (8, 8, 3, 3)},
        "IMG2IMG_VAE",
    ),
    (
        "vae of diffusers",
        Contents.DIFFUSERS_VAE,
        {"decoder.mid_block.resnets.0.conv1.weight": (8, 8, 3, 3)},
        "IMG2IMG_VAE",
    ),
    ("tiny vae", Contents.TINY_VAE, {"decoder.layers.0.weight": (8, 4, 3, 3)}, "tiny VAE"),
    ("taesd", Contents.HALF_TINY_VAE, {"1.conv.0.weight": (8, 8, 3, 3)}, "half of a tiny VAE"),
    ("bare unet", Contents.LDM_UNET, {"input_blocks.0.0.weight": (8, 4, 3, 3)}, "U-Net alone"),
    (
        "unet of diffusers",
        Contents.DIFFUSERS_UNET,
        {"conv_in.weight": (8, 4, 3, 3), "time_embedding.linear_1.weight": (8, 8)},
        "model_index.json",
    ),
    ("text encoder", Contents.TEXT_ENCODER, {CLIP: (8, 8)}, "text encoder alone"),
    ("something", Contents.UNKNOWN, {"layer.weight": (8, 8)}, r"unknown here \(.*layer.weight"),
    ("nothing", Contents.UNKNOWN, {}, "none at all"),
]


@pytest.mark.parametrize(("contents", "shapes", "words"), [k[1:] for k in KINDS],
                         ids=[k[0] for k in KINDS])  # fmt: skip
def test_a_file_that_is_no_checkpoint(
    contents: Contents, shapes: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    assert identify(WeightsFile.open(path)) is contents
    with pytest.raises(ModelLoadError, match=words):
        load_model(ModelSpec(str(path)), device="cpu")


def test_a_checkpoint_is_one(checkpoint_file: Path) -> None:
    assert identify(WeightsFile.open(checkpoint_file)) is Contents.CHECKPOINT


def _fails(path: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(ModelSpec(str(path)), device="cpu")
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_a_pickle_is_refused_unread(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"never read")
    assert "can run code" in _fails(path)
    path.unlink()
    assert "can run code" in _fails(path)


def test_a_pickle_under_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}) + bytes(100))
    assert "can run code" in _fails(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "can run code" in _fails(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "is a web page"),
        (b"GGUF" + bytes(60), "is a GGUF file"),
        (bytes(range(100)), "no safetensors file"),
        (b"\xff" * 100, "no safetensors file"),
    ],
)
def test_what_is_no_safetensors_file(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert words in _fails(path)


def test_a_truncated_file_says_how_much_there_is(checkpoint_file: Path, tmp_path: Path) -> None:
    whole = checkpoint_file.read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[: len(whole) // 2])
    assert f"is truncated, {len(whole) // 2:,} of {len(whole):,} bytes" in _fails(path)
    path.write_bytes(whole[:1000])
    assert "is truncated within its header" in _fails(path)


def test_a_corrupt_header(checkpoint_file: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint_file)
    path = tmp_path / "model.safetensors"
    save_file({"a": tensors["betas"]}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["a"]["shape"] = [7]
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + raw[8 + length :])
    assert "is corrupt" in _fails(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no file" in _fails(tmp_path / "none.safetensors")
