"""Weights made to do harm: each is refused with a reason, and nothing else is opened."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models.auxiliary.choose import choose_clip, choose_safety
from models.bundle import ModelBundle
from models.loading.autoencoder import load_autoencoder
from models.loading.checkpoint import open_checkpoint
from models.loading.loader import ModelLoadError, ModelSpec, load_folder, load_model
from models.loading.lora import read_lora
from models.loading.textual_inversion import read_embeddings
from models.loading.weights_file import WeightsFile
from tests.tiny_model import TEXT_WIDTH, write_tiny_checker

NESTED = "[" * 100_000


class Trap:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def with_index(folder: Path, shard: str) -> Path:
    """Make the folder one of shards whose index names ``shard`` for every tensor."""
    (weights,) = folder.glob("*.safetensors")
    names = load_file(weights)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    weights.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


OUTSIDE = ["../../outside.pt", "../outside.safetensors", "/tmp/outside.safetensors",
           "..\\outside.safetensors", "pytorch_model.bin"]  # fmt: skip


@pytest.mark.parametrize("shard", OUTSIDE)
def test_an_index_that_names_a_file_elsewhere_is_refused(
    tiny: ModelBundle, tiny_clip_folder: Path, tmp_path: Path, shard: str
) -> None:
    mark = tmp_path / "opened"
    for name in ("outside.pt", "model/outside.safetensors", "outside.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(pickle.dumps(Trap(mark)))
    clip = with_index(shutil.copytree(tiny_clip_folder, tmp_path / "model" / "clip"), shard)
    (clip / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(ModelLoadError, match=r"index\.json names .*(outside|pytorch_model)"):
        choose_clip(tiny, str(clip))
    checker = with_index(write_tiny_checker(tmp_path / "model" / "checker"), shard)
    with pytest.raises(ModelLoadError, match=r"index\.json names .*(outside|pytorch_model)"):
        choose_safety(tiny, str(checker))
    assert not mark.exists()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_an_index_of_a_models_part_is_held_to_the_same(
    tiny_folder: Path, tmp_path: Path, part: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = next((folder / part).glob("*.safetensors"))
    shutil.copy(weights, tmp_path / "copy.safetensors")
    with_index(folder / part, "../../outside.safetensors")
    shutil.copy(tmp_path / "copy.safetensors", weights)
    with pytest.raises(ModelLoadError, match=r"outside\.safetensors.*outside its folder"):
        load_folder(folder, name="x", device=torch.device("cpu"), dtype=torch.float32)


def test_shards_and_links_into_a_cache_are_read(
    tiny: ModelBundle, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    weights.unlink()
    shards = {}
    for i, names in enumerate((list(tensors)[:20], list(tensors)[20:])):
        shard = f"model-{i + 1:05}-of-00002.safetensors"
        (tmp_path / "blobs").mkdir(exist_ok=True)
        save_file({name: tensors[name] for name in names}, tmp_path / "blobs" / f"{i}")
        (folder / shard).symlink_to(tmp_path / "blobs" / f"{i}")
        shards |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    clip = choose_clip(tiny, str(folder))
    assert clip is not None
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, tensors[name]), name


def test_a_configuration_cannot_name_code(
    tiny: ModelBundle, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    named = {"attn_implementation": "somebody/kernel", "auto_map": {"AutoModel": "x--y.Z"}}
    config |= named
    config["text_config"] |= named
    (folder / "config.json").write_text(json.dumps(config))
    clip = choose_clip(tiny, str(folder))
    assert clip is not None
    assert clip.model.config._attn_implementation == "sdpa"
    assert clip.model.text_model.config._attn_implementation == "sdpa"


def header_file(path: Path, header: bytes, length: int | None = None, data: bytes = b"") -> Path:
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize(
    ("header", "length", "reason"),
    [
        (NESTED.encode(), None, "nested too deeply"),
        (b'{"a":' * 50_000, None, "nested too deeply"),
        (b'{"__metadata__":' + NESTED.encode() + b"}", None, "nested too deeply"),
        (b"{}", 2**63, "truncated within its header"),
        (b"{}", 2**64 - 1, "truncated within its header"),
        (b"[]", None, "is corrupt"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', None, "is truncated"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', None, "is corrupt"),
        (b'{"a":{"dtype":"F32","shape":[1e99],"data_offsets":[0,8]}}', None, "is "),
        (b'{"a":3}', None, "is corrupt"),
    ],
)
def test_a_bad_header_is_a_reason(
    tmp_path: Path, header: bytes, length: int | None, reason: str
) -> None:
    path = header_file(tmp_path / "x.safetensors", header, length)
    with pytest.raises(ModelLoadError, match=reason):
        WeightsFile.open(path)


def test_overlapping_and_doubled_tensors_are_refused(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[2],"data_offsets":[%d,%d]}'
    for header in (
        f'{{"a":{entry % (0, 8)},"b":{entry % (4, 12)}}}',
        f'{{"a":{entry % (0, 8)},"a":{entry % (8, 16)}}}',
    ):
        path = header_file(tmp_path / "x.safetensors", header.encode(), data=bytes(16))
        with pytest.raises(ModelLoadError, match="is corrupt"):
            WeightsFile.open(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BOOL", "F8_E4M3", "X"]) | VALUES,
        "shape": st.lists(st.integers(0, 4), max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | VALUES,
    }
)
NAMES = st.sampled_from(
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.x.attn2.to_k.weight",
        "lora_unet_x.lora_down.weight",
        "emb_params",
        "__metadata__",
    ]
)


@settings(suppress_health_check=list(HealthCheck))
@given(header=st.dictionaries(NAMES, ENTRIES | VALUES), data=st.binary(max_size=64))
def test_whatever_a_file_says_it_loads_or_has_a_reason(
    tiny_folder: Path, tmp_path: Path, header: dict[str, Any], data: bytes
) -> None:
    path = header_file(tmp_path / "x.safetensors", json.dumps(header).encode(), data=data)
    (tmp_path / "folder").mkdir(exist_ok=True)
    shutil.copy(path, tmp_path / "folder")
    cpu: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    readers: list[Callable[[], object]] = [
        lambda: open_checkpoint(path),
        lambda: read_lora(path, {"x": "unet.x"}),
        lambda: read_embeddings(tmp_path / "folder", TEXT_WIDTH),
        lambda: load_autoencoder(str(path), tiny_folder, **cpu),
    ]
    for reader in readers:
        try:
            reader()
        except ModelLoadError as error:
            assert str(error)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "vae/config.json",
                                  "text_encoder/config.json", "scheduler/scheduler_config.json",
                                  "tokenizer/tokenizer_config.json", "tokenizer/vocab.json"]
)  # fmt: skip
def test_a_nested_configuration_is_a_reason(tiny_folder: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / file).write_text(NESTED)
    with pytest.raises(ModelLoadError, match=rf"{Path(file).parts[0]}.*(nested|recursion)"):
        load_model(ModelSpec(str(folder)), device="cpu", dtype="float32")


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_nested_configuration_of_a_companion_is_a_reason(
    tiny: ModelBundle, tiny_clip_folder: Path, tmp_path: Path, file: str
) -> None:
    clip = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    checker = write_tiny_checker(tmp_path / "checker")
    for folder in (clip, checker):
        (folder / file).write_text(NESTED)
    with pytest.raises(ModelLoadError, match="nested too deeply"):
        choose_clip(tiny, str(clip))
    with pytest.raises(ModelLoadError, match="nested too deeply"):
        choose_safety(tiny, str(checker))


def test_a_checker_of_older_names_and_numbers_that_are_none(
    tiny: ModelBundle, tmp_path: Path
) -> None:
    folder = write_tiny_checker(tmp_path / "checker")
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    wanted = choose_safety(tiny, str(folder)).checker.state_dict()
    older = {
        name.replace("vision_model.vision_model.", "vision_model.").replace(
            "vision_model.", "vision_model.vision_model."
        ): tensor
        for name, tensor in tensors.items()
    }
    save_file(older, weights)
    again = choose_safety(tiny, str(folder)).checker.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in wanted.items())
    older["concept_embeds"][0, 0] = torch.nan
    save_file(older, weights)
    with pytest.raises(ModelLoadError, match="concept_embeds holds NaN"):
        choose_safety(tiny, str(folder))
