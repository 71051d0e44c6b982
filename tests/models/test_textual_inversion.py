"""Textual inversions: their vectors are what the text encoder sees in place of the word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from models.bundle import ModelBundle
from models.clip_words import clip_normalized, clip_words
from models.loading.loader import ModelLoadError, ModelSpec, load_model
from pipelines.prompt.encoder import PromptEncoder
from tests.tiny_model import TEXT_WIDTH


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))


def load(tiny_folder: Path, folder: Path) -> ModelBundle:
    spec = ModelSpec(str(tiny_folder), embeddings=str(folder))
    return load_model(spec, device="cpu", dtype="float32")


def token_of(bundle: ModelBundle, letter: str) -> int:
    (token,) = bundle.tokenizer(letter, add_special_tokens=False).input_ids
    return int(token)


def row(bundle: ModelBundle, letter: str) -> torch.Tensor:
    weight: torch.Tensor = bundle.text_encoder.get_input_embeddings().weight
    return weight[token_of(bundle, letter)]


def test_both_layouts_and_their_rows(tiny_folder: Path, tiny: ModelBundle, tmp_path: Path) -> None:
    save_file({"emb_params": vectors(3)}, tmp_path / "EasyStyle.safetensors")
    save_file({"<cat-toy>": vectors(1, 1)[0]}, tmp_path / "learned_embeds.safetensors")
    bundle = load(tiny_folder, tmp_path)
    before = tiny.text_encoder.get_input_embeddings().weight
    table = bundle.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(before)], before)
    n = len(before)
    assert bundle.embeddings == {"easystyle": (n, n + 1, n + 2), "<cat-toy>": (n + 3,)}
    assert torch.equal(table[n:], torch.cat([vectors(3), vectors(1, 1)]))
    assert bundle.facts["embeddings"] == "easystyle, <cat-toy>"


def test_a_word_stands_for_its_vectors(
    tiny_folder: Path, tiny: ModelBundle, tmp_path: Path
) -> None:
    """A word that was given the vectors of "x" and "y" reads as "x y" does."""
    learnt = torch.stack([row(tiny, "x"), row(tiny, "y")]).clone()
    save_file({"emb_params": learnt}, tmp_path / "mystyle.safetensors")
    encoder = PromptEncoder(load(tiny_folder, tmp_path))
    plain = PromptEncoder(tiny)
    for text, want in [
        ("a mystyle b", "a x y b"),
        ("a, MyStyle, b", "a, x y, b"),
        ("(mystyle:1.3) b", "(x y:1.3) b"),
        ("mystyle", "x y"),
        ("amystyle mystyles", "amystyle mystyles"),
        ("nothing of it", "nothing of it"),
    ]:
        got = encoder.encode_pair(text, "")
        torch.testing.assert_close(got, plain.encode_pair(want, ""), atol=1e-6, rtol=1e-5)


def test_a_word_is_not_torn_by_the_end_of_a_chunk(
    tiny_folder: Path, tiny: ModelBundle, tmp_path: Path
) -> None:
    save_file({"emb_params": vectors(4)}, tmp_path / "w.safetensors")
    bundle = load(tiny_folder, tmp_path)
    encoder = PromptEncoder(bundle)
    letters = "a " * 73
    chunks = encoder.chunks(letters + "w b")
    assert [len(chunk.ids) for chunk in chunks] == [73, 5]
    assert chunks[1].ids[:4] == bundle.embeddings["w"]
    assert encoder.length(encoder.read(letters + "w b", "")) == 2 * 77


def test_more_vectors_than_a_chunk_holds(tiny_folder: Path, tmp_path: Path) -> None:
    save_file({"emb_params": vectors(80)}, tmp_path / "w.safetensors")
    encoder = PromptEncoder(load(tiny_folder, tmp_path))
    assert [len(chunk.ids) for chunk in encoder.chunks("w")] == [75, 5]
    assert encoder.encode_pair("w", "").shape == (2, 154, TEXT_WIDTH)


def test_an_empty_folder_is_no_error(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = load(tiny_folder, tmp_path)
    assert bundle.embeddings == {}
    assert bundle.facts["embeddings"] == "none in the folder"


def test_what_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is no folder"):
        load(tiny_folder, tmp_path / "none")
    file = tmp_path / "a.safetensors"
    save_file({"emb_params": torch.zeros(2, 768)}, file)
    with pytest.raises(ModelLoadError, match="768 wide, the text encoder's 32"):
        load(tiny_folder, tmp_path)
    save_file({"clip_l": torch.zeros(1, TEXT_WIDTH), "clip_g": torch.zeros(1, 64)}, file)
    with pytest.raises(ModelLoadError, match="for another model"):
        load(tiny_folder, tmp_path)
    save_file({"emb_params": torch.full((1, TEXT_WIDTH), float("nan"))}, file)
    with pytest.raises(ModelLoadError, match="NaN"):
        load(tiny_folder, tmp_path)
    save_file({"emb_params": vectors(1)}, file)
    save_file({"A": vectors(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ModelLoadError, match="the word 'a' already"):
        load(tiny_folder, tmp_path)
    (tmp_path / "b.safetensors").unlink()
    (tmp_path / "old.pt").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"old\.pt is a pickle"):
        load(tiny_folder, tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a mystile b", True),
        ("a MYSTILE b", True),
        ("a myst\u0131le b", False),  # the dotless i is no i
        ("a myst\u0130le b", False),  # lower-cased it is an i and a dot
        ("a my\u017ftile b", False),  # the long s is no s
        ("a \u212aelvin b", True),  # the sign of Kelvin lower-cases to k
        ("a \u00c9t\u00e9 b", True),
        ("a E\u0301te\u0301 b", True),
        ("two\u3000words", True),
    ],
)
def test_a_word_is_found_as_clip_lower_cases(
    tiny_folder: Path, tmp_path: Path, text: str, found: bool
) -> None:
    words = {word: vectors(1, i) for i, word in enumerate(["MyStile", "kelvin", "e\u0301te\u0301"])}
    save_file(words | {"two words": vectors(1, 9)}, tmp_path / "learned_embeds.safetensors")
    bundle = load(tiny_folder, tmp_path)
    learnt = {row for rows in bundle.embeddings.values() for row in rows}
    (chunk,) = PromptEncoder(bundle).chunks(text)
    assert bool(learnt & set(chunk.ids)) == found


ODD = st.text(st.characters(codec="utf-8") | st.sampled_from("iIsSkK\u0131\u0130\u017f\u212a ()"))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(word=ODD, text=ODD)
def test_any_text_reads_whatever_the_words_are(tiny: ModelBundle, word: str, text: str) -> None:
    if not (word := clip_normalized(word).strip()):
        word = "\u0131"
    bundle = replace(tiny, embeddings={word: (7, 8)})
    for prompt in (text, f"{text} {word} {word.upper()} {text}", word.swapcase()):
        assert PromptEncoder(bundle).chunks(prompt)


@given(text=ODD)
def test_the_normal_form_and_the_words_are_the_tokenizers(tiny: ModelBundle, text: str) -> None:
    backend = tiny.tokenizer._tokenizer
    normal = clip_normalized(text)
    assert normal == backend.normalizer.normalize_str(text)
    if normal.isascii():  # beyond it the two may know different versions of Unicode
        spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(normal)]
        assert [begin for begin, _ in clip_words(normal)] == [begin for begin, _ in spans]


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (torch.tensor(1.0), "no vector of a word"),
        (torch.zeros(0, TEXT_WIDTH), "no vector of a word"),
        (torch.zeros(1, 1, TEXT_WIDTH), "no vector of a word"),
        (torch.zeros(1, TEXT_WIDTH, dtype=torch.int32), "NaN, infinity"),
        (torch.full((1, TEXT_WIDTH), 1e6), "beyond half precision"),
        (torch.full((1, TEXT_WIDTH), float("inf")), "NaN, infinity"),
    ],
)
def test_damaged_vectors_are_refused_by_name(
    tiny_folder: Path, tmp_path: Path, tensor: torch.Tensor, problem: str
) -> None:
    save_file({"emb_params": tensor}, tmp_path / "w.safetensors")
    with pytest.raises(ModelLoadError, match=rf"w\.safetensors.*{problem}"):
        load(tiny_folder, tmp_path)
