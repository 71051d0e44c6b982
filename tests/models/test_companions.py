"""Models beside the main one: which CLIP and which safety checker a choice gives."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from models.auxiliary.choose import DEFAULT_CLIP, choose_clip, choose_safety, shipped_checker
from models.bundle import ModelBundle
from models.loading.clip import OPENAI_MEAN, load_clip
from models.loading.loader import ModelLoadError, load_bundle
from tests.tiny_model import write_tiny_checker

pytestmark = pytest.mark.process


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with nothing in it, and no hub."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_in_cache(hub: Path, name: str, folder: Path, revision: str) -> None:
    snapshot = hub / f"models--{name.replace('/', '--')}" / "snapshots" / revision
    shutil.copytree(folder, snapshot)


def test_the_embedded_model_brings_its_own_clip() -> None:
    bundle = load_bundle(device="cpu", dtype="float32")
    assert bundle.clip is not None
    assert choose_clip(bundle) is bundle.clip
    assert choose_clip(bundle, "none") is None
    # Its pixels are in -1..1.
    assert bundle.clip.mean.tolist() == bundle.clip.std.tolist() == [0.5] * 3
    assert bundle.clip.side == 64
    text = bundle.clip.embed_text("a red house")
    assert text.norm().item() == pytest.approx(1.0, abs=1e-5)
    pictures = bundle.clip.embed_images(torch.rand(2, 3, 64, 64))
    assert pictures.shape == (2, *text.shape)


def test_a_named_folder_is_loaded(tiny: ModelBundle, tiny_clip_folder: Path) -> None:
    clip = choose_clip(tiny, str(tiny_clip_folder))
    assert clip is not None
    assert clip.tokenizer is tiny.tokenizer
    assert clip.mean.tolist() == pytest.approx(OPENAI_MEAN)


def test_a_long_text_is_read_to_its_end(guided: ModelBundle) -> None:
    assert guided.clip is not None
    one, other = (guided.clip.embed_text("a" * 100 + end) for end in (" cat", " dog"))
    assert not torch.allclose(one, other)
    assert one.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_a_named_model_that_is_not_there_is_an_error(
    tiny: ModelBundle, tmp_path: Path, empty_cache: Path
) -> None:
    with pytest.raises(ModelLoadError, match="neither 'auto', nor 'none', nor a folder"):
        choose_clip(tiny, str(tmp_path / "nothing" / "here"))
    with pytest.raises(ModelLoadError, match="not a CLIP model that loads"):
        choose_clip(tiny, str(tmp_path))
    with pytest.raises(ModelLoadError, match="not in the local cache"):
        choose_clip(tiny, "someone/clip")


def test_a_tokenizer_that_does_not_fit_is_refused(
    tiny: ModelBundle, tiny_clip_folder: Path
) -> None:
    embedded = load_bundle(device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="its tokenizer knows 1305 tokens"):
        load_clip(
            tiny_clip_folder,
            name="x",
            device=tiny.device,
            dtype=torch.float32,
            tokenizer=embedded.tokenizer,
        )


def test_auto_takes_what_is_cached_and_else_goes_without(
    tiny: ModelBundle,
    tiny_clip_folder: Path,
    tiny_folder: Path,
    tmp_path: Path,
    empty_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for bundle in (tiny, replace(tiny, name="someone/model")):
        with caplog.at_level(logging.WARNING):
            assert choose_clip(bundle) is None
        assert "no CLIP guidance" in caplog.text
        caplog.clear()
    whole = shutil.copytree(tiny_clip_folder, tmp_path / "whole")
    shutil.copytree(tiny_folder / "tokenizer", whole, dirs_exist_ok=True)
    put_in_cache(empty_cache, DEFAULT_CLIP, whole, "32bd64288804d66eefd0ccbe215aa642df71cc41")
    clip = choose_clip(tiny)
    assert clip is not None
    assert clip.name == DEFAULT_CLIP


def test_a_check_that_is_asked_for_is_never_left_out(
    tiny: ModelBundle, tmp_path: Path, empty_cache: Path
) -> None:
    remedy = "'tiny' ships no safety checker: name one with IMG2IMG_SAFETY_CHECKER"
    with pytest.raises(ModelLoadError, match=remedy):
        choose_safety(tiny)
    with pytest.raises(ModelLoadError, match="not a safety checker that loads"):
        choose_safety(tiny, str(tmp_path))
    with pytest.raises(ModelLoadError, match="nor a folder that exists"):
        choose_safety(tiny, str(tmp_path / "nothing" / "here"))
    with pytest.raises(ModelLoadError, match="not in the local cache"):
        choose_safety(replace(tiny, name="someone/model"))


def test_the_checker_that_a_model_ships_is_found(
    tiny: ModelBundle, tiny_folder: Path, tmp_path: Path, empty_cache: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    assert shipped_checker(folder) is None
    write_tiny_checker(folder / "safety_checker")
    (folder / "feature_extractor").mkdir()
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(processor))
    model = choose_safety(replace(tiny, path=folder))
    assert model.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    put_in_cache(empty_cache, "someone/model", folder, "abc")
    (empty_cache / "models--someone--model" / "refs").mkdir()
    (empty_cache / "models--someone--model" / "refs" / "main").write_text("abc")
    assert choose_safety(replace(tiny, name="someone/model")).name == "someone/model's own"


def test_scores_are_those_that_diffusers_decides_by(tiny: ModelBundle, tmp_path: Path) -> None:
    model = choose_safety(tiny, str(write_tiny_checker(tmp_path / "checker")))
    rng = np.random.default_rng(4)
    pictures = [
        (rng.random(3) * 255 + rng.normal(0, 30, (size, size, 3))).clip(0, 255).astype(np.uint8)
        for size in (32, 40, 64)
        for _ in range(8)
    ]
    # Thresholds in the middle of what these pictures have, so that both verdicts occur.
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pixels = processor(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        image = model.checker.visual_projection(model.checker.vision_model(pixels)[1])
        cosine = torch.nn.functional.cosine_similarity(
            image[:, None], model.checker.concept_embeds[None], dim=-1
        )
        care = torch.nn.functional.cosine_similarity(
            image[:, None], model.checker.special_care_embeds[None], dim=-1
        )
    model.checker.concept_embeds_weights.data = cosine.max(dim=0).values - 0.002
    model.checker.special_care_embeds_weights.data = care.quantile(0.9, dim=0)
    _, verdicts = model.checker(pixels, [np.zeros((2, 2, 3)) for _ in pictures])
    scores = model.scores(pictures)
    assert any(verdicts)
    assert not all(verdicts)
    assert [score > 0 for score in scores] == verdicts
    assert scores == [score for picture in pictures for score in model.scores([picture])]
