"""The configuration and tokenizer that single files are loaded with."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from models.loading.checkpoint import SD15_FOLDER
from models.loading.parts import make_text_encoder, make_unet, make_vae


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(SD15_FOLDER / "tokenizer", local_files_only=True)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        (
            "Hello, world! it's 2024's café 日本 🙂",
            # What open_clip's own tokenizer makes of it.
            [
                *(3306, 267, 1002, 256, 585, 568, 273, 271, 273, 275),
                *(568, 15304, 39121, 19277, 361, 14860),
            ],
        ),
    ],
)
def test_known_prompts(tokenizer: CLIPTokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer(text).input_ids == [49406, *ids, 49407]


def test_the_vocabulary(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer) == 49408
    assert tokenizer.model_max_length == 77
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 49407
    assert "MIT License" in (SD15_FOLDER / "tokenizer" / "LICENSE").read_text()


def test_the_parts_have_the_published_sizes() -> None:
    """Counts of Stable Diffusion 1.5's published files."""
    for make, part, tensors, values in [
        (make_unet, "unet", 686, 859_520_964),
        (make_vae, "vae", 248, 83_653_863),
        (make_text_encoder, "text_encoder", 196, 123_060_480),
    ]:
        state = make(SD15_FOLDER / part).state_dict()
        assert (len(state), sum(value.numel() for value in state.values())) == (tensors, values)


def test_attention_heads_are_those_that_are_known() -> None:
    unet = make_unet(SD15_FOLDER / "unet")
    assert unet.config.attention_head_dim == 8
    assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 8
