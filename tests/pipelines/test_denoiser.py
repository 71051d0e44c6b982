"""One step at a time: the loop against diffusers' latents, and what neighbours may not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from models.bundle import ModelBundle
from models.peak_memory import PeakMemory
from pipelines.denoise.batch import Evaluation
from pipelines.denoise.denoiser import Denoiser
from pipelines.denoise.latent_pool import LatentPool
from pipelines.prompt.encoder import PromptEncoder
from pipelines.request import CONTRACT_SAMPLERS, GenerationRequest, Pixels, Sampler
from pipelines.samplers.programs import SamplerProgram, make_program
from pipelines.samplers.schedules import make_scheduler
from pipelines.scheduler.batching import GroupKey, pad_rows
from pipelines.vae.encode import encode_image
from pipelines.vae.noise import RequestNoise
from pipelines.vae.start import start_latents

pytestmark = pytest.mark.process

RIGHT_IN_DIFFUSERS = [
    s for s in CONTRACT_SAMPLERS if s not in (Sampler.K_DPMPP_2S_ANCESTRAL, Sampler.K_LMS)
]


@pytest.fixture(autouse=True)
def no_grad() -> object:
    with torch.inference_mode():
        yield


def evaluations(
    programs: list[SamplerProgram],
    step: int,
    cfg_scale: float,
    noise: list[RequestNoise],
    places: list[int],
) -> list[Evaluation]:
    chosen = []
    for program, draws, place in zip(programs, noise, places, strict=True):
        if step < len(program):
            row = program.steps[step]
            draw = None if row.noise is None else draws.steps[row.noise]
            chosen.append(Evaluation(place, row, cfg_scale, program.slots, draw))
    return chosen


@pytest.mark.parametrize("sampler", RIGHT_IN_DIFFUSERS)
@pytest.mark.parametrize("image_strength", [0.1, 0.7])
def test_latents_equal_those_of_diffusers(
    tiny: ModelBundle, picture: Pixels, sampler: Sampler, image_strength: float
) -> None:
    seed, cfg_scale, steps = 77, 6.0, 10
    text = PromptEncoder(tiny).encode_pair("a green tree", "a dark sky")
    program = make_program(sampler, steps, image_strength)
    noise = RequestNoise.draw(seed, (4, 16, 16), program.draws)
    latents = encode_image(tiny, picture, tile=False).sample(noise.posterior, tiny.scaling_factor)
    pool = LatentPool(tiny, GroupKey(16, 16, 77, False), capacity=2)
    request = GenerationRequest(picture, "", image_strength=image_strength)
    start = start_latents(request, program.steps[0].sigma, noise, latents, None, tiny.device)
    place = pool.admit(start, text)
    denoiser = Denoiser(tiny)
    for step in range(len(program)):
        denoiser.step(pool, evaluations([program], step, cfg_scale, [noise], [place]))
    pipe = StableDiffusionImg2ImgPipeline(
        tiny.vae, tiny.text_encoder, tiny.tokenizer, tiny.unet, make_scheduler(sampler), None, None
    )
    pipe.set_progress_bar_config(disable=True)
    want = pipe(
        prompt_embeds=text[1:],
        negative_prompt_embeds=text[:1],
        image=Image.fromarray(picture),
        strength=1 - image_strength,
        num_inference_steps=steps,
        guidance_scale=cfg_scale,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images[0]
    error = (pool.latents(place) - want).abs().max() / want.abs().max()
    assert error < 1e-3


def crowd(
    tiny: ModelBundle,
) -> tuple[LatentPool, list[SamplerProgram], list[RequestNoise], list[int]]:
    """One request of each sampler, with random latents and texts, in one pool."""
    pool = LatentPool(tiny, GroupKey(8, 8, 77, False), capacity=len(CONTRACT_SAMPLERS))
    programs = [make_program(sampler, 10, 0.5) for sampler in CONTRACT_SAMPLERS]
    noise = [
        RequestNoise.draw(i + 1, (4, 8, 8), program.draws) for i, program in enumerate(programs)
    ]
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(len(CONTRACT_SAMPLERS), 2, 77, tiny.text_width, generator=generator)
    places = [
        pool.admit(draw.start * program.steps[0].sigma, text[i])
        for i, (program, draw) in enumerate(zip(programs, noise, strict=True))
    ]
    return pool, programs, noise, places


def run(
    tiny: ModelBundle, poisoned: int | None = None, buckets: tuple[int, ...] = ()
) -> list[torch.Tensor]:
    pool, programs, noise, places = crowd(tiny)
    if poisoned is not None:
        pool.state[places[poisoned]] = float("nan")
    denoiser = Denoiser(tiny)
    for step in range(max(map(len, programs))):
        given = evaluations(programs, step, 7.0, noise, places)
        denoiser.step(pool, given, pad_rows(2 * len(given), buckets))
    return [pool.latents(place) for place in places]


@pytest.mark.parametrize("poisoned", [0, 4, len(CONTRACT_SAMPLERS) - 1])
def test_nan_in_one_request_leaves_every_neighbour_unchanged_to_the_bit(
    either_tiny: ModelBundle, poisoned: int
) -> None:
    clean, with_nan = run(either_tiny), run(either_tiny, poisoned)
    for i, (want, got) in enumerate(zip(clean, with_nan, strict=True)):
        if i == poisoned:
            assert torch.isnan(got).all()
        else:
            assert torch.equal(got, want)


@pytest.mark.parametrize("buckets", [(32,), (4, 8, 16, 32)])
def test_padding_rows_do_not_change_a_picture(
    either_tiny: ModelBundle, buckets: tuple[int, ...]
) -> None:
    for want, got in zip(run(either_tiny), run(either_tiny, buckets=buckets), strict=True):
        assert (got - want).abs().max() / want.abs().max() < 1e-4


def test_a_step_reports_its_rows_with_padding(tiny: ModelBundle) -> None:
    pool, programs, noise, places = crowd(tiny)
    three = evaluations(programs[:3], 0, 7.0, noise[:3], places[:3])
    assert Denoiser(tiny).step(pool, three).rows == 6
    assert Denoiser(tiny).step(pool, three, 8).rows == 8


def test_a_new_request_finds_its_slots_zeroed(tiny: ModelBundle) -> None:
    pool = LatentPool(tiny, GroupKey(8, 8, 77, False), capacity=1)
    place = pool.admit(torch.ones(4, 8, 8), torch.zeros(2, 77, tiny.text_width))
    pool.state[place] = float("nan")
    assert pool.full
    pool.release(place)
    assert pool.admit(torch.ones(4, 8, 8), torch.zeros(2, 77, tiny.text_width)) == place
    assert np.array_equal(pool.state[place, 1:].numpy(), np.zeros((3, 4, 8, 8)))


def test_a_pool_of_long_texts_holds_those_of_its_requests_alone(tiny: ModelBundle) -> None:
    """Room for the longest at each of 64 places would be 1.6 GB of Stable Diffusion 1.5's."""
    key = GroupKey(8, 8, 107 * 77, False)
    texts = [torch.ones(2, key.text_tokens, tiny.text_width) for _ in range(3)]
    with PeakMemory() as memory:
        pool = LatentPool(tiny, key, capacity=64)
        places = [pool.admit(torch.zeros(4, 8, 8), text) for text in texts]
        rows = tuple(2 * place + side for place in places for side in (0, 1))
        assert pool.text_rows(rows, torch.tensor(rows)).shape == (6, key.text_tokens, 32)
        assert memory.now < 1.5 * 3 * texts[0].nbytes
        for place in places:
            pool.release(place)
        assert memory.now < texts[0].nbytes
