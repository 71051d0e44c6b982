"""Prompts to text states: short, long, pairs, and the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from models.acceleration.cuda_graphs import EagerCapturer
from models.bundle import CompiledParts, ModelBundle
from pipelines.prompt.encoder import PromptEncoder, weighted
from tests.host_waits import no_host_waits


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_short_prompts_are_encoded_as_diffusers_encodes_them(tiny: ModelBundle) -> None:
    pipe = StableDiffusionImg2ImgPipeline(
        tiny.vae, tiny.text_encoder, tiny.tokenizer, tiny.unet, None, None, None, None
    )
    cond, uncond = pipe.encode_prompt("a red cat", "cpu", 1, True, "blurry, dark")
    got = PromptEncoder(tiny).encode_pair("a red cat", "blurry, dark")
    assert got.shape == (2, 77, tiny.text_width)
    assert torch.allclose(got[0], uncond[0], atol=1e-5)
    assert torch.allclose(got[1], cond[0], atol=1e-5)


@pytest.mark.parametrize(("letters", "chunks"), [(0, 1), (75, 1), (76, 2), (151, 3)])
def test_long_prompts_are_joined_from_chunks_of_75_tokens(
    tiny: ModelBundle, letters: int, chunks: int
) -> None:
    # The tiny tokenizer makes one token of one letter.
    text = ("abcdefghij" * 20)[:letters]
    encoder = PromptEncoder(tiny)
    states = encoder.encode_pair(text, "")
    assert states.shape == (2, 77 * chunks, tiny.text_width)
    assert encoder.length(encoder.read(text, "")) == 77 * chunks
    for i in range(chunks):
        alone = text[75 * i : 75 * (i + 1)]
        # Only the last chunk ends a word, so only there does the tokenizer see the same letters.
        if i == chunks - 1:
            part = encoder.encode_pair(alone, "")[1]
            assert torch.allclose(states[1, 77 * i : 77 * (i + 1)], part, atol=1e-5)
    empty = encoder.encode_pair("", "")[0]
    for i in range(chunks):
        assert torch.allclose(states[0, 77 * i : 77 * (i + 1)], empty, atol=1e-5)


def test_the_end_of_a_long_prompt_matters(tiny: ModelBundle) -> None:
    encoder = PromptEncoder(tiny)
    one = encoder.encode_pair("a" * 100 + " cat", "")
    other = encoder.encode_pair("a" * 100 + " dog", "")
    assert torch.equal(one[1, :77], other[1, :77])
    assert not torch.allclose(one[1, 77:], other[1, 77:])


@pytest.mark.parametrize("text", ["日本語 🎨", "\x00\x07", "{}[]()\\", "<|endoftext|>", "ÅÉîøü"])
def test_any_text_encodes(tiny: ModelBundle, text: str) -> None:
    states = PromptEncoder(tiny).encode_pair(text, "")
    assert torch.isfinite(states).all()


def test_the_cache_is_hit_bounded_and_changes_nothing(tiny: ModelBundle) -> None:
    one = 77 * tiny.text_width * 4
    encoder = PromptEncoder(tiny, cache_bytes=2 * one)
    first = encoder.encode_pair("a", "b")
    assert (encoder.counts.hits, encoder.counts.misses) == (0, 2)
    assert torch.equal(encoder.encode_pair("a", "b"), first)
    assert (encoder.counts.hits, encoder.counts.misses) == (2, 2)
    encoder.encode_pair("c", "d")
    encoder.encode_pair("a", "b")
    assert encoder.counts.misses == 6


def test_a_weight_multiplies_the_states_of_its_tokens_alone(tiny: ModelBundle) -> None:
    encoder = PromptEncoder(tiny)
    chunk = encoder.chunks("ab(cd:1.5)ef")[0]
    assert chunk.weights == (1.0, 1.0, 1.5, 1.5, 1.0, 1.0)
    ids = [512, *chunk.ids, *[513] * 70]
    states = tiny.text_encoder(torch.tensor([ids]))[0][0]
    # The tiny model's means are near zero: its weighted states are the bare product.
    states[3:5] *= 1.5
    assert torch.allclose(encoder.encode_pair("ab(cd:1.5)ef", "")[1], states, atol=1e-6)


def test_the_mean_is_kept_where_it_is_not_near_zero() -> None:
    states = torch.randn(77, 64, generator=torch.Generator().manual_seed(1)) - 0.3
    weights = (1.0, 1.4, 0.5)
    got = weighted(states, weights)
    product = states.clone()
    product[2] *= 1.4
    product[3] *= 0.5
    # A1111: z * multipliers, then times the original mean over the new one.
    assert torch.allclose(got, product * (states.mean() / product.mean()), atol=1e-6)
    assert got.mean() == pytest.approx(states.mean().item(), rel=1e-5)
    centred = states - states.mean()
    product = centred.clone()
    product[2] *= 1.4
    product[3] *= 0.5
    assert torch.allclose(weighted(centred, weights), product, atol=1e-6)
    half = weighted(states.half(), weights)
    assert half.dtype == torch.float16
    assert torch.isfinite(half).all()


def test_a_weighted_text_does_not_wait_for_the_device() -> None:
    states = torch.randn(77, 64, generator=torch.Generator().manual_seed(1)) - 0.3
    with no_host_waits(states.device):
        weighted(states, (1.0, 1.4, 0.5))


def test_a_captured_text_has_the_bits_of_one_as_it_comes(tiny: ModelBundle) -> None:
    capturer = EagerCapturer()
    plain, captured = PromptEncoder(tiny), PromptEncoder(tiny, capturer=capturer)
    captured.encode_empty()
    asked = [("a cat", ""), ("a (dog:1.3)", "blurry"), ("abcdefghij" * 20, "a BREAK b")]
    made = [captured.encode_pair(*texts) for texts in asked]
    # Compared at the end: a replay leaves what earlier ones made.
    for got, texts in zip(made, asked, strict=True):
        assert torch.equal(got, plain.encode_pair(*texts))
    counts = captured.graphs
    assert (capturer.captures, counts.captures, counts.fallbacks) == (1, 1, 0)
    assert counts.replays == 1 + captured.counts.misses


def test_a_text_encoder_that_cannot_be_captured_runs_as_it_comes(
    tiny: ModelBundle, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(EagerCapturer):
        def capture(self, run: Callable[[], object]) -> Callable[[], None]:
            raise torch.OutOfMemoryError("out of memory")

    encoder = PromptEncoder(tiny, capturer=Failing())
    got = encoder.encode_pair("a cat", "a dog")
    assert torch.equal(got, PromptEncoder(tiny).encode_pair("a cat", "a dog"))
    assert (encoder.graphs.failures, encoder.graphs.fallbacks) == (1, 2)
    assert [r.getMessage() for r in caplog.records] == [
        "the text encoder is not captured: out of memory"
    ]


def test_a_compiled_text_encoder_is_not_captured_until_it_is_taken_out(tiny: ModelBundle) -> None:
    parts = CompiledParts(
        sizes=frozenset(),
        rows=frozenset(),
        text_length=tiny.text_length,
        unet=tiny.unet,
        text_encoder=tiny.text_encoder,
        encode=tiny.vae.encode,
        decode=tiny.vae.decode,
    )
    bundle, capturer = replace(tiny, compiled=parts), EagerCapturer()
    encoder = PromptEncoder(bundle, capturer=capturer)
    encoder.encode_pair("a cat", "")
    assert capturer.captures == 0
    bundle.compiled = None
    encoder.encode_pair("a dog", "")
    assert capturer.captures == 1


def test_break_starts_a_new_chunk_and_the_other_side_is_padded(tiny: ModelBundle) -> None:
    encoder = PromptEncoder(tiny)
    states = encoder.encode_pair("abc BREAK def", "dark")
    assert states.shape == (2, 154, tiny.text_width)
    assert encoder.length(encoder.read("abc BREAK def", "dark")) == 154
    parts = [encoder.encode_pair(text, "")[1] for text in ("abc", "def", "dark", "")]
    assert torch.equal(states[1], torch.cat(parts[:2]))
    assert torch.equal(states[0], torch.cat(parts[2:]))
    longer = encoder.encode_pair("abc", "x BREAK y BREAK z")
    assert torch.equal(longer[1], torch.cat([parts[0], parts[3], parts[3]]))


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("abc BREAK", [3]),
        ("abc BREAK BREAK", [3, 0]),
        ("abc BREAK BREAK de", [3, 0, 2]),
        ("BREAK abc", [0, 3]),
        ("BREAK", [0]),
        ("BREAK BREAK", [0, 0]),
        ("(abc BREAK:1.2)", [3]),
        ("", [0]),
        ("a" * 75 + " BREAK b", [75, 1]),
    ],
)
def test_each_break_is_one_and_an_empty_last_chunk_is_none(
    tiny: ModelBundle, text: str, lengths: list[int]
) -> None:
    """As A1111's `FrozenCLIPEmbedderWithCustomWordsBase.tokenize_line` has it."""
    assert [len(chunk.ids) for chunk in PromptEncoder(tiny).chunks(text)] == lengths


def test_a_weight_holds_across_chunks(tiny: ModelBundle) -> None:
    chunks = PromptEncoder(tiny).chunks("(" + "a" * 100 + ":1.2)")
    assert [len(chunk.ids) for chunk in chunks] == [75, 25]
    assert {weight for chunk in chunks for weight in chunk.weights} == {1.2}
