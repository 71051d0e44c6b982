"""Every source of weights, and every reason not to take one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.loading import hub, loader
from models.loading.loader import ModelLoadError, load_bundle


def test_a_local_folder(tiny_folder: Path) -> None:
    bundle = load_bundle(str(tiny_folder), device="cpu", dtype="float32")
    assert bundle.name == "model"
    assert bundle.downscale == 8
    assert bundle.latent_size(576, 384) == (48, 72)
    assert bundle.text_length == 77
    assert bundle.scaling_factor == pytest.approx(0.18215)
    on_disk = load_file(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(v, on_disk[k]) for k, v in bundle.unet.state_dict().items())
    assert not any(p.requires_grad for p in bundle.unet.parameters())
    assert not bundle.unet.training


def test_fp16_variant_files_are_found(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(tiny_folder, folder)
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        halved = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        file.unlink()
        save_file(halved, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    bundle = load_bundle(str(folder), device="cpu", dtype="bfloat16")
    assert bundle.unet.dtype is bundle.vae.dtype is bundle.text_encoder.dtype is torch.bfloat16


def test_a_hub_id_is_taken_from_the_cache_when_offline(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny-diffusion"
    shutil.copytree(tiny_folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    bundle = load_bundle("someone/tiny-diffusion", revision=revision, device="cpu")
    assert bundle.name == "someone/tiny-diffusion"
    with pytest.raises(ModelLoadError, match="not in the local cache"):
        load_bundle("someone/other", device="cpu")


def test_only_the_needed_files_of_a_repository_are_fetched() -> None:
    files = [
        "model_index.json",
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "safety_checker/model.safetensors",
        "tokenizer/merges.txt",
    ]
    half = hub.wanted_files(files, torch.float16)
    full = hub.wanted_files(files, torch.float32)
    common = {"model_index.json", "unet/config.json", "tokenizer/merges.txt"}
    vae = {"vae/diffusion_pytorch_model.safetensors"}
    assert set(half) == common | vae | {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert set(full) == common | vae | {"unet/diffusion_pytorch_model.safetensors"}


def test_production_default_is_pinned() -> None:
    revision = loader.PINNED_REVISIONS["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert len(revision) == 40


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("no such thing", "neither"),
        ("/nowhere/at/all/here", "neither"),
    ],
)
def test_names_that_are_nothing(model: str, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        load_bundle(model, device="cpu")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"\x80\x04")
    with pytest.raises(ModelLoadError, match="pickle"):
        load_bundle(str(file), device="cpu")


def _broken(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    return folder


def test_broken_folders_are_named_for_what_they_are(tiny_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelLoadError, match="model_index"):
        load_bundle(str(empty), device="cpu")
    folder = _broken(tiny_folder, tmp_path)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelLoadError, match="'vae'"):
        load_bundle(str(folder), device="cpu")


def test_another_architecture_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = _broken(tiny_folder, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionXLPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match="StableDiffusionXLPipeline"):
        load_bundle(str(folder), device="cpu")


def test_a_folder_with_pickles_only_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = _broken(tiny_folder, tmp_path)
    (file,) = (folder / "unet").glob("*.safetensors")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_bundle(str(folder), device="cpu")


def test_a_truncated_file_is_an_error_with_its_path(tiny_folder: Path, tmp_path: Path) -> None:
    folder = _broken(tiny_folder, tmp_path)
    (file,) = (folder / "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match="vae"):
        load_bundle(str(folder), device="cpu")


def test_device_and_dtype() -> None:
    cpu = torch.device("cpu")
    assert loader.choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    assert loader.choose_dtype("float32", cpu) is torch.float32
    assert loader.choose_dtype("auto", torch.device("cuda")) is torch.float16
    assert loader.choose_dtype("bfloat16", cpu) is torch.bfloat16
    assert loader.choose_device("cpu") == cpu
    for device, dtype in [("nonsense", "auto"), ("cpu", "float16"), ("cpu", "int3")]:
        with pytest.raises(ModelLoadError):
            loader.choose_dtype(dtype, loader.choose_device(device))


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_a_device_that_nobody_has_tried(device: str) -> None:
    with pytest.raises(ModelLoadError, match=f"device '{device}' is not one to run on here: use"):
        loader.choose_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_where_there_is_none() -> None:
    with pytest.raises(ModelLoadError, match="CUDA"):
        loader.choose_device("cuda")
