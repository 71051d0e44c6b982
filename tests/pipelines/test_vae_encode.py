"""Noise, encoding, decoding, and the seam of a tiling picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from models.bundle import ModelBundle
from models.padding import circular_padding
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import GenerationRequest, Pixels, Sampler
from pipelines.samplers.programs import make_program
from pipelines.vae.decode import Decoding, decode_latents
from pipelines.vae.encode import ImageEncoder, Moments, encode_image
from pipelines.vae.noise import RequestNoise
from pipelines.vae.start import start_latents


def test_noise_comes_in_the_order_of_one_generator() -> None:
    noise = RequestNoise.draw(42, (4, 5, 6), draws=3)
    generator = torch.Generator().manual_seed(42)
    wanted = [torch.randn(1, 4, 5, 6, generator=generator)[0] for _ in range(5)]
    got = [noise.posterior, noise.start, *noise.steps]
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_noise_without_draws_is_empty() -> None:
    assert RequestNoise.draw(1, (4, 5, 6), draws=0).steps.shape == (0, 4, 5, 6)


def test_start_is_picture_plus_noise_and_pure_noise_at_strength_zero(picture: Pixels) -> None:
    moments = Moments(torch.full((4, 2, 2), 3.0), torch.zeros(4, 2, 2))
    noise = RequestNoise.draw(1, (4, 2, 2), 0)
    latents = moments.sample(noise.posterior, scaling_factor=0.5)
    cpu = torch.device("cpu")
    request = GenerationRequest(picture, "", image_strength=0.35)
    sigma = make_program(Sampler.K_EULER, 20, 0.35).steps[0].sigma
    got = start_latents(request, sigma, noise, latents, None, cpu)
    assert torch.allclose(got, 1.5 + noise.start * sigma)
    sigma = make_program(Sampler.K_EULER, 20, 0.0).steps[0].sigma
    request = GenerationRequest(picture, "", image_strength=0.0)
    pure = start_latents(request, sigma, noise, latents, None, cpu)
    assert torch.allclose(pure, noise.start * np.sqrt(sigma**2 + 1))
    # A1111's first step may be the very first, and its picture is still there.
    request = GenerationRequest(picture, "", first_step=0)
    assert torch.allclose(
        start_latents(request, sigma, noise, latents, None, cpu), 1.5 + noise.start * sigma
    )


def test_moments_equal_those_of_the_vae(tiny: ModelBundle, picture: Pixels) -> None:
    with torch.inference_mode():
        moments = encode_image(tiny, picture, tile=False)
        pixels = torch.from_numpy(picture).float().permute(2, 0, 1)[None] / 255 * 2 - 1
        want = tiny.vae.encode(pixels).latent_dist
    assert moments.mean.shape == (4, 16, 16)
    assert torch.allclose(moments.mean, want.mean[0], atol=1e-6)
    assert torch.allclose(moments.std, want.std[0], atol=1e-6)


def test_a_picture_that_is_not_finite_is_an_error(tiny: ModelBundle) -> None:
    with pytest.raises(FloatingPointError), torch.inference_mode():
        decode_latents(tiny, torch.full((4, 8, 8), float("nan")), tile=False)


def test_a_picture_that_overflows_half_precision_is_decoded_in_float32(tiny: ModelBundle) -> None:
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.2
    vae = AutoencoderKL.from_config(tiny.vae.config).eval().to(torch.bfloat16)
    vae.load_state_dict(tiny.vae.state_dict())
    half = replace(tiny, vae=vae, dtype=torch.bfloat16)

    def overflow(_: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        return out if args[0].dtype is torch.float32 else out * float("inf")

    with torch.inference_mode():
        want = decode_latents(half, latents, tile=False)
        # A copy of the module takes the hook along: only float32 gets through.
        vae.decoder.conv_out.register_forward_hook(overflow)
        got = decode_latents(half, latents, tile=False)
    assert half.vae.dtype is torch.bfloat16
    assert np.abs(got.astype(int) - want).max() <= 8  # bfloat16 against float32
    with pytest.raises(FloatingPointError, match="latents"), torch.inference_mode():
        decode_latents(half, latents * float("inf"), tile=False)


def test_a_picture_is_decoded_in_parts(tiny: ModelBundle) -> None:
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.2
    with torch.inference_mode():
        decoding = Decoding(tiny, latents, tile=False, parts=3)
        parts = [decoding.advance() for _ in range(3)]
        want = decode_latents(tiny, latents, tile=False)
    assert parts[:2] == [None, None]
    assert parts[2] is not None
    assert np.array_equal(parts[2], want)


def test_a_picture_that_may_not_be_written_is_encoded(tiny: ModelBundle, picture: Pixels) -> None:
    locked = picture[:, ::-1]
    locked.flags.writeable = False
    with torch.inference_mode():
        got = encode_image(tiny, locked, tile=False)
        want = encode_image(tiny, picture[:, ::-1].copy(), tile=False)
    assert torch.equal(got.mean, want.mean)


def test_a_picture_is_encoded_in_parts_and_then_remembered(
    tiny: ModelBundle, picture: Pixels
) -> None:
    encoder = ImageEncoder(tiny)
    with torch.inference_mode():
        first = encoder.begin(picture, tile=False, parts=3)
        moments = [first.advance() for _ in range(3)]
        cached = encoder.begin(picture, tile=False, parts=3).advance()
    assert moments[:2] == [None, None]
    assert cached is moments[2] is not None


def test_padding_is_circular_only_inside_the_context(tiny: ModelBundle) -> None:
    modes = {m.padding_mode for m in tiny.unet.modules() if isinstance(m, torch.nn.Conv2d)}
    with circular_padding(True, tiny.unet):
        inside = {m.padding_mode for m in tiny.unet.modules() if isinstance(m, torch.nn.Conv2d)}
    after = {m.padding_mode for m in tiny.unet.modules() if isinstance(m, torch.nn.Conv2d)}
    assert (modes, inside, after) == ({"zeros"}, {"circular"}, {"zeros"})


def test_tiling_decodes_a_shifted_latent_to_the_shifted_picture(tiny: ModelBundle) -> None:
    """With circular padding nothing marks the edge, so it can be anywhere."""
    latents = torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(1)) * 0.2
    shifted = latents.roll((4, 6), dims=(1, 2))
    with torch.inference_mode():
        same = decode_latents(tiny, latents, tile=True)
        moved = decode_latents(tiny, shifted, tile=True)
        plain = decode_latents(tiny, latents, tile=False)
        plain_moved = decode_latents(tiny, shifted, tile=False)
    assert np.abs(np.roll(same, (32, 48), axis=(0, 1)).astype(int) - moved).max() <= 1
    assert np.abs(np.roll(plain, (32, 48), axis=(0, 1)).astype(int) - plain_moved).max() > 10


def test_tiling_and_plain_requests_do_not_mix(tiny: ModelBundle, picture: Pixels) -> None:
    engine = Engine(tiny, EngineConfig(warm_up=False))
    engine.start()
    plain = GenerationRequest(picture, "moss", image_strength=0.0, steps=10, seed=2)
    tiled = GenerationRequest(picture, "moss", image_strength=0.0, steps=10, seed=2, tile=True)
    alone = [engine.submit(request).wait(60).image for request in (plain, tiled)]
    handles = [engine.submit(request) for request in (plain, tiled, plain)]
    together = [handle.wait(60).image for handle in handles]
    engine.drain(grace=5)
    assert np.abs(alone[0].astype(int) - alone[1]).max() > 10
    for got, want in zip(together, [alone[0], alone[1], alone[0]], strict=True):
        assert np.abs(got.astype(int) - want).max() <= 1


def test_a_cached_picture_changes_no_bit(tiny: ModelBundle, picture: Pixels) -> None:
    encoder = ImageEncoder(tiny, cache_bytes=10**6)
    with torch.inference_mode():
        first = encoder.encode(picture, tile=False)
        again = encoder.encode(picture.copy(), tile=False)
        encoder.encode(picture, tile=True)
        encoder.encode(np.rot90(picture).copy(), tile=False)
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.std, again.std)
    assert (encoder.counts.hits, encoder.counts.misses) == (1, 3)


def test_a_cache_that_is_too_small_keeps_nothing(tiny: ModelBundle, picture: Pixels) -> None:
    encoder = ImageEncoder(tiny, cache_bytes=100)
    with torch.inference_mode():
        encoder.encode(picture, tile=False)
        encoder.encode(picture, tile=False)
    assert (encoder.counts.hits, encoder.counts.misses) == (0, 2)
