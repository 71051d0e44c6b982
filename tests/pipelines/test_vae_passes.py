"""A VAE pass in parts against the whole one, to the bit."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st

from models.bundle import ModelBundle
from models.padding import circular_padding
from pipelines.vae.passes import VaePass, decoder_layers, encoder_layers, partition


def finish(one: VaePass, parts: int) -> torch.Tensor:
    for _ in range(parts - 1):
        assert one.advance() is None
    result = one.advance()
    assert result is not None
    return result


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 5, 40])
@torch.inference_mode()
def test_parts_give_the_bits_of_the_whole(tiny: ModelBundle, parts: int, tile: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    pictures = torch.rand(1, 3, 64, 96, generator=generator) * 2 - 1
    latents = torch.randn(1, 4, 8, 12, generator=generator)
    with circular_padding(tile, tiny.vae):
        moments = tiny.vae.encode(pictures).latent_dist.parameters
        decoded = tiny.vae.decode(latents, return_dict=False)[0]
    encode = VaePass(tiny.vae, encoder_layers(tiny.vae), pictures, parts, tile=tile)
    decode = VaePass(tiny.vae, decoder_layers(tiny.vae), latents, parts, tile=tile)
    assert torch.equal(finish(encode, parts), moments)
    assert torch.equal(finish(decode, parts), decoded)


@torch.inference_mode()
def test_an_autoencoder_of_another_make_is_one_layer() -> None:
    vae = AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8)).eval()
    latents = torch.randn(1, 4, 8, 8)
    expected = vae.decode(latents, return_dict=False)[0]
    decode = VaePass(vae, decoder_layers(vae), latents, 4, tile=False)
    assert torch.equal(finish(decode, 4), expected)


def test_parts_of_a_decode_cost_about_the_same(tiny: ModelBundle) -> None:
    costs = [layer.cost for layer in decoder_layers(tiny.vae)]
    shares = [sum(costs[part]) / sum(costs) for part in partition(costs, 3)]
    assert max(shares) < 0.34 + max(costs) / sum(costs)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=30), st.integers(1, 40))
def test_a_partition_covers_everything_once_in_order(costs: list[float], parts: int) -> None:
    slices = partition(costs, parts)
    assert len(slices) == parts
    assert [i for s in slices for i in range(len(costs))[s]] == list(range(len(costs)))
