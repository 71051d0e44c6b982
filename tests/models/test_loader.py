"""Every source of weights, and every reason not to take one."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle import ModelBundle
from models.loading import hub, loader
from models.loading.loader import ModelLoadError, load_bundle
from models.loading.sources import _EVERY_SOURCE, Source
from models.memory import measure_footprint
from pipelines.prompt.encoder import PromptEncoder
from tests.tiny_model import TEXT_WIDTH


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
    assert bundle.facts["weights"] == "fp16 files of vae, unet, text_encoder"


def halved_cache(tiny_folder: Path, repository: Path, revision: str) -> Path:
    """A hub's cache with fp16 weights alone, as a pull in float16 leaves it."""
    snapshot = shutil.copytree(tiny_folder, repository / "snapshots" / revision)
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (snapshot / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    return snapshot


def test_float32_does_not_take_fp16_files_from_the_cache(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny-diffusion"
    snapshot = halved_cache(tiny_folder, repository, revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def load(dtype: str) -> ModelBundle:
        return load_bundle("someone/tiny-diffusion", revision=revision, device="cpu", dtype=dtype)

    with pytest.raises(ModelLoadError, match="not in float32"):
        load("float32")
    assert load("bfloat16").facts["weights"].startswith("fp16 files")
    (half,) = (snapshot / "vae").glob("*.safetensors")
    shutil.copy(half, half.parent / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelLoadError, match="not in float32"):
        load("float32")
    for part in ("unet", "text_encoder"):
        (half,) = (snapshot / part).glob("*.safetensors")
        half.rename(half.parent / half.name.replace(".fp16", ""))
    assert load("float32").facts["weights"] == "plain files"


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


def test_a_tokenizer_as_transformers_5_writes_it_is_found_in_the_cache(
    tiny: ModelBundle, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--someone--tiny-diffusion" / "snapshots" / revision
    tokenizer = shutil.copytree(tiny_folder, snapshot) / "tokenizer"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def load() -> ModelBundle:
        return load_bundle("someone/tiny-diffusion", revision=revision, device="cpu")

    shutil.rmtree(tokenizer)
    tiny.tokenizer.save_pretrained(tokenizer)
    assert {file.name for file in tokenizer.iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    text = "a red house"
    assert load().tokenizer(text).input_ids == tiny.tokenizer(text).input_ids
    (tokenizer / "tokenizer.json").unlink()
    shutil.copy(tiny_folder / "tokenizer" / "vocab.json", tokenizer)
    with pytest.raises(ModelLoadError, match="not in the local cache"):
        load()  # the merges are missing


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
    files.remove("unet/diffusion_pytorch_model.safetensors")
    assert set(hub.wanted_files(files, torch.float32)) == set(half)


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


FURTHER_INPUTS = [
    ("time_cond_proj_dim", 256),
    ("encoder_hid_dim", 32),
    ("num_class_embeds", 4),
    ("class_embed_type", "timestep"),
    ("addition_embed_type", "text"),
    ("_class_name", "UNetMotionModel"),
    ("_class_name", "UNet3DConditionModel"),
]


@pytest.mark.parametrize(("key", "value"), FURTHER_INPUTS)
def test_a_unet_that_reads_more_than_it_would_get_is_refused(
    tiny_folder: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = _broken(tiny_folder, tmp_path)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    said = f"is a {value}, not a" if key == "_class_name" else f"{key} is {value!r}: this U-Net"
    with pytest.raises(ModelLoadError, match=said):
        load_bundle(str(folder), device="cpu")


def test_settings_that_do_nothing_for_a_source_are_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    for model, setting, options in (
        ("embedded", "IMG2IMG_EMA", {"ema": True}),
        ("embedded", "IMG2IMG_MODEL_REVISION", {"revision": "main"}),
        (str(tiny_folder), "IMG2IMG_EMA", {"ema": True}),
        (str(tiny_folder), "IMG2IMG_MODEL_REVISION", {"revision": "main"}),
        ("someone/tiny-diffusion", "IMG2IMG_EMA", {"ema": True}),
        (str(file), "IMG2IMG_MODEL_REVISION", {"revision": "main"}),
    ):
        spec = loader.ModelSpec(model, **options)  # type: ignore[arg-type]
        with pytest.raises(ModelLoadError, match=rf"for which {setting} does nothing: it is for"):
            loader.load_model(spec, device="cpu")


def test_every_part_of_a_spec_is_read_by_some_source() -> None:
    for field in fields(loader.ModelSpec):
        assert field.name in _EVERY_SOURCE or any(field.name in s.value[1] for s in Source)


def test_a_tokenizer_that_says_no_length_has_the_text_encoders(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = _broken(tiny_folder, tmp_path)
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    bundle = load_bundle(str(folder), device="cpu", dtype="float32")
    assert bundle.tokenizer.model_max_length > 10**29
    assert bundle.text_length == 77
    assert PromptEncoder(bundle).encode_pair("a " * 80, "").shape == (2, 2 * 77, TEXT_WIDTH)
    assert measure_footprint(bundle).row_pixel > 0


@pytest.mark.parametrize("length", [0, 2, -1, math.nan, "many", [77]])
def test_a_tokenizer_without_room_for_a_word_is_refused(
    tiny_folder: Path, tmp_path: Path, length: object
) -> None:
    folder = _broken(tiny_folder, tmp_path)
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": length}))
    with pytest.raises(ModelLoadError, match="the tokenizer's model_max_length is"):
        load_bundle(str(folder), device="cpu")


def test_a_tokenizer_that_knows_more_than_the_text_encoder_is_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = _broken(tiny_folder, tmp_path)
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<style>": 514}))
    with pytest.raises(ModelLoadError, match="knows 515 tokens, the text encoder 514"):
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


@pytest.mark.parametrize(
    ("cards", "asked", "said"),
    [
        (1, "cuda:1", "torch sees one CUDA device here, cuda:0"),
        (4, "cuda:7", "torch sees 4 CUDA devices here, cuda:0 to cuda:3"),
    ],
)
def test_a_card_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, cards: int, asked: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    for device in ("auto", "cuda", f"cuda:{cards - 1}"):
        assert loader.choose_device(device).type == "cuda"
    with pytest.raises(ModelLoadError, match=f"^device '{asked}' was asked for, but {said}$"):
        loader.choose_device(asked)


def test_a_dtype_that_a_card_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"cuda:0": (7, 5), "cuda:1": (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: capabilities[str(d)])
    old, new = torch.device("cuda:0"), torch.device("cuda:1")
    assert loader.choose_dtype("bfloat16", new) is torch.bfloat16
    assert loader.choose_dtype("float16", old) is torch.float16
    with pytest.raises(ModelLoadError, match=r"'bfloat16' needs .* 8\.0 .*; cuda:0 has 7\.5: use"):
        loader.choose_dtype("bfloat16", old)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_where_there_is_none() -> None:
    with pytest.raises(ModelLoadError, match="CUDA"):
        loader.choose_device("cuda")
