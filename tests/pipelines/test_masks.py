"""Masks: what is kept is kept to the bit, for any sampler, and no neighbour notices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.acceleration.cuda_graphs import EagerCapturer
from models.bundle import ModelBundle
from pipelines.denoise.batch import Evaluation
from pipelines.denoise.denoiser import Denoiser
from pipelines.denoise.latent_pool import LatentPool
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import (
    CONTRACT_SAMPLERS,
    GenerationRequest,
    Mask,
    MaskedContent,
    Pixels,
    Sampler,
)
from pipelines.samplers.programs import SamplerProgram, make_program
from pipelines.scheduler.batching import GroupKey
from pipelines.vae.mask import latent_mask
from pipelines.vae.noise import RequestNoise
from pipelines.vae.start import start_latents

pytestmark = pytest.mark.process

COUNT = len(CONTRACT_SAMPLERS)
BUCKETS = (2, 4, 8, 16, 32, 64)
KEY = GroupKey(8, 8, 77, False)


@pytest.fixture(scope="module")
def engine(tiny: ModelBundle) -> Iterator[Engine]:
    engine = Engine(tiny, EngineConfig(exact=True, warm_up=False))
    engine.start()
    yield engine
    engine.drain(grace=5)


@pytest.fixture
def mask() -> Mask:
    """Anew at the right, kept at the left, a slope of 24 pixels between, and a thin line."""
    slope = np.clip((np.arange(128) - 40) / 24, 0, 1) * 255
    mask = np.tile(slope, (128, 1)).round().astype(np.uint8)
    mask[:16], mask[-16:] = 0, 0
    mask[4:6, :] = 255
    return mask


def pictures(engine: Engine, requests: list[GenerationRequest]) -> list[Pixels]:
    handles = [engine.submit(request) for request in requests]
    return [handle.wait(120).image for handle in handles]


# Pixels


def test_a_latent_has_the_mean_of_its_pixels() -> None:
    mask = np.zeros((16, 24), np.uint8)
    mask[:8, :8] = 255
    mask[8:, 8:12] = 255
    mask[10, 16:] = 255
    assert latent_mask(mask, 8).tolist() == [[[1, 0, 0], [0, 0.5, 0.125]]]


def test_a_mask_of_another_size_or_from_noise_is_refused(picture: Pixels, mask: Mask) -> None:
    with pytest.raises(ValueError, match=r"mask: \(128, 127\) uint8"):
        GenerationRequest(picture, "", mask=mask[:, 1:])
    with pytest.raises(ValueError, match="mask: a picture that starts from noise"):
        GenerationRequest(picture, "", mask=mask, from_noise=True)


# Whole pictures


def test_the_result_is_all_that_was_decoded(engine: Engine, picture: Pixels, mask: Mask) -> None:
    """No pixel of the image is put back, which would be done twice where it is done later too."""
    requests = [
        GenerationRequest(picture, "a cat", steps=5, seed=4, sampler=sampler, mask=mask)
        for sampler in CONTRACT_SAMPLERS
    ]
    for sampler, made in zip(CONTRACT_SAMPLERS, pictures(engine, requests), strict=True):
        changed = (made != picture).any(axis=-1)
        assert changed[mask == 0].mean() > 0.9, sampler
        assert changed[mask == 255].mean() > 0.9, sampler


def test_a_mask_of_ones_changes_no_bit(engine: Engine, picture: Pixels) -> None:
    """To the bit: a blend of x0 by one gives the very model output (`torch.lerp`)."""
    plain = [
        GenerationRequest(
            picture, "a cat", image_strength=strength, steps=4, seed=4, sampler=sampler
        )
        for sampler, strength in zip(
            CONTRACT_SAMPLERS, [0.0, 0.5] * len(CONTRACT_SAMPLERS), strict=False
        )
    ]
    ones = np.full((128, 128), 255, np.uint8)
    masked = [replace(request, mask=ones) for request in plain]
    for want, got in zip(pictures(engine, plain), pictures(engine, masked), strict=True):
        assert np.array_equal(got, want)


def test_a_masked_request_changes_no_byte_of_strangers(
    engine: Engine, picture: Pixels, mask: Mask
) -> None:
    strangers = [
        GenerationRequest(picture, f"a cat {i}", steps=4, seed=i, sampler=sampler)
        for i, sampler in enumerate((Sampler.K_LMS, Sampler.K_HEUN, Sampler.DDPM), 1)
    ]
    masked = GenerationRequest(picture, "a dog", steps=4, seed=9, mask=mask)
    want = pictures(engine, [*strangers, masked])
    alone = [pictures(engine, [request])[0] for request in (*strangers, masked)]
    for one, other in zip(want, alone, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("fields", [{"image_strength": 1.0}, {"first_step": 5}])
def test_with_no_step_left_the_result_is_the_image(
    engine: Engine, picture: Pixels, mask: Mask, fields: dict[str, float]
) -> None:
    request = replace(GenerationRequest(picture, "a cat", steps=5, mask=mask), **fields)
    assert np.array_equal(pictures(engine, [request])[0], picture)


def test_what_a_mask_starts_from_is_told_apart(engine: Engine, picture: Pixels, mask: Mask) -> None:
    requests = [
        GenerationRequest(
            picture, "a cat", image_strength=0.6, steps=5, mask=mask, masked_content=content
        )
        for content in MaskedContent
    ]
    made = pictures(engine, requests)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (made[one] != made[other]).mean() > 0.2


def test_only_the_masked_area_starts_from_something_else(picture: Pixels) -> None:
    latents, sigma = torch.randn(4, 4, 4), 1.5
    area = torch.zeros(1, 4, 4)
    area[:, :, 2:] = 1.0
    some = np.zeros((128, 128), np.uint8)
    for content, strength in [*((content, 0.5) for content in MaskedContent), ("pure", 0.0)]:
        masked_content = MaskedContent.ORIGINAL if content == "pure" else MaskedContent(content)
        request = GenerationRequest(
            picture, "", image_strength=strength, mask=some, masked_content=masked_content
        )
        noise = RequestNoise.of(request, (4, 4, 4), 0)
        start = start_latents(request, sigma, noise, latents, area, torch.device("cpu"))
        assert torch.equal(start[..., :2], (latents + sigma * noise.start)[..., :2])
        inside = start[..., 2:] - sigma * noise.start[..., 2:]
        if content is MaskedContent.LATENT_NOISE:
            assert noise.content is not None
            assert torch.allclose(inside, noise.content[..., 2:], atol=1e-6)
        else:
            assert noise.content is None
        if content is MaskedContent.LATENT_NOTHING:
            assert torch.allclose(inside, torch.zeros(()), atol=1e-6)
        if content == "pure":
            want = noise.start[..., 2:] * np.sqrt(sigma**2 + 1)
            assert torch.allclose(start[..., 2:], want)


# Steps


class MaskedCrowd:
    """A request of each sampler in one pool; those at odd places keep the left half."""

    def __init__(self, tiny: ModelBundle, patience: int | None, masked: bool = True) -> None:
        self.pool = LatentPool(tiny, KEY, len(CONTRACT_SAMPLERS), patience)
        self.programs = [make_program(sampler, 6, 0.3) for sampler in CONTRACT_SAMPLERS]
        generator = torch.Generator().manual_seed(1)
        text = torch.randn(COUNT, 2, 77, tiny.text_width, generator=generator)
        self.kept = torch.randn(COUNT, 4, 8, 8, generator=generator)
        self.noise = [RequestNoise.draw(i, (4, 8, 8), p.draws) for i, p in enumerate(self.programs)]
        self.places = [
            self.pool.admit(self.kept[i] + noise.start * program.steps[0].sigma, text[i])
            for i, (program, noise) in enumerate(zip(self.programs, self.noise, strict=True))
        ]
        self.masked = [masked and i % 2 == 1 for i in range(COUNT)]
        half = torch.zeros(1, 8, 8)
        half[..., 4:] = 1.0
        for i in range(COUNT):
            if self.masked[i]:
                self.pool.keep(self.places[i], half, self.kept[i])

    def run(self, denoiser: Denoiser) -> torch.Tensor:
        """All of them together; the final latents, (COUNT, 4, 8, 8)."""
        with torch.inference_mode():
            for step in range(max(map(len, self.programs))):
                denoiser.step(
                    self.pool,
                    [
                        self._evaluation(i, program, step)
                        for i, program in enumerate(self.programs)
                        if step < len(program)
                    ],
                )
            return torch.stack([self.pool.latents(place) for place in self.places])

    def _evaluation(self, i: int, program: SamplerProgram, step: int) -> Evaluation:
        row = program.steps[step]
        draw = None if row.noise is None else self.noise[i].steps[row.noise]
        masked = self.masked[i]
        return Evaluation(self.places[i], row, 5.0, program.slots, draw, masked=masked)


def test_what_is_kept_ends_as_the_latents_of_the_image(tiny: ModelBundle) -> None:
    """Whatever noise a sampler adds: after decoding the seam then meets what is around it."""
    for parity in (0, 1):
        crowd = MaskedCrowd(tiny, None)
        crowd.masked = [True] * COUNT
        half = torch.zeros(1, 8, 8)
        half[..., 4 * parity : 4 + 4 * parity] = 1.0
        for i in range(COUNT):
            crowd.pool.keep(crowd.places[i], half, crowd.kept[i])
        made = crowd.run(Denoiser(tiny))
        outside = (half == 0).expand(4, 8, 8)
        for i, sampler in enumerate(CONTRACT_SAMPLERS):
            want = crowd.kept[i][outside]
            if sampler is Sampler.DDIM:  # whose schedule ends above no noise
                assert (made[i][outside] - want).abs().max() < 0.15
            else:
                assert torch.allclose(made[i][outside], want, atol=2e-4), sampler
            assert (made[i] - crowd.kept[i])[~outside].abs().mean() > 0.1, sampler


def test_rows_without_a_mask_keep_their_bits_captured_or_not(tiny: ModelBundle) -> None:
    bare = MaskedCrowd(tiny, None, masked=False)
    want = bare.run(Denoiser(tiny, BUCKETS))
    assert bare.pool.kept is None  # no mask, no work
    plain = MaskedCrowd(tiny, None).run(Denoiser(tiny, BUCKETS))
    capturer = EagerCapturer()
    captured = MaskedCrowd(tiny, 0).run(Denoiser(tiny, BUCKETS, capturer))
    assert capturer.captures
    assert torch.equal(plain[0::2], want[0::2])
    assert torch.equal(captured, plain)
    assert not torch.isclose(plain[1::2], want[1::2]).all(dim=-1).any(dim=-1).any()


@pytest.mark.parametrize("poisoned", [0, 3])
def test_nan_stays_in_its_row_masked_or_not(tiny: ModelBundle, poisoned: int) -> None:
    want = MaskedCrowd(tiny, 0).run(Denoiser(tiny, BUCKETS, EagerCapturer()))
    crowd = MaskedCrowd(tiny, 0)
    crowd.pool.state[crowd.places[poisoned]] = float("nan")
    assert crowd.pool.kept is not None
    crowd.pool.kept.latents[crowd.places[poisoned]] = float("nan")
    got = crowd.run(Denoiser(tiny, BUCKETS, EagerCapturer()))
    others = [i for i in range(COUNT) if i != poisoned]
    assert torch.isnan(got[poisoned]).all()
    assert torch.equal(got[others], want[others])
