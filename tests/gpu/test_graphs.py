"""Graphs against what they recorded, bit for bit; forwards on two streams at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from models.bundle import ModelBundle
from pipelines.denoise.batch import Evaluation
from pipelines.denoise.denoiser import Denoiser
from pipelines.denoise.latent_pool import LatentPool
from pipelines.prompt.encoder import PromptEncoder
from pipelines.request import Sampler
from pipelines.samplers.programs import make_program
from pipelines.scheduler.batching import GroupKey
from pipelines.vae.decode import decode_latents, decode_together
from pipelines.vae.encode import encode_image
from pipelines.vae.graphs import VaeGraphs
from scripts.benchmarks.gpu.forwards import unet_inputs
from scripts.benchmarks.gpu.plan import picture
from tests.gpu.rig import Rig


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def bundle(rig: Rig) -> ModelBundle:
    return rig.fast(rig.bundle())


def latents_after(
    rig: Rig, bundle: ModelBundle, denoiser: Denoiser, patience: int | None
) -> torch.Tensor:
    """Three requests of different scales through all their steps: (3, 4, h, w)."""
    height, width = bundle.latent_size(rig.size, rig.size)
    pool = LatentPool(bundle, GroupKey(height, width, bundle.text_length, False), 3, patience)
    generator = torch.Generator().manual_seed(5)
    program = make_program(Sampler.K_EULER, 10, 0.5)
    places = []
    for _ in range(3):
        start = torch.randn(4, height, width, generator=generator) * program.steps[0].sigma
        text = torch.randn(2, bundle.text_length, bundle.text_width, generator=generator)
        places.append(pool.admit(start.to(bundle.device), text.to(bundle.device, bundle.dtype)))
    scales = (7.0, 1.0, 4.0)
    for row in program.steps:
        denoiser.step(
            pool,
            [
                Evaluation(place, row, scale, program.slots, None)
                for place, scale in zip(places, scales, strict=True)
            ],
            8,
        )
    return torch.stack([pool.latents(place) for place in places])


def test_captured_steps_give_the_bits_of_steps_as_they_come(rig: Rig, bundle: ModelBundle) -> None:
    want = latents_after(rig, bundle, Denoiser(bundle), None)
    got = latents_after(rig, bundle, Denoiser(bundle, (8,), rig.capturer()), 0)
    assert torch.isfinite(want).all()
    assert torch.equal(got, want)


def test_captured_passes_give_the_bits_of_passes_as_they_come(
    rig: Rig, bundle: ModelBundle
) -> None:
    height, width = bundle.latent_size(rig.size, rig.size)
    graphs = VaeGraphs(rig.capturer(), {(height, width)})
    for seed in (1, 2):  # the second is a replay
        image = picture(rig.size, rig.size, seed)
        want = encode_image(bundle, image, tile=False)
        got = encode_image(bundle, image, tile=False, graphs=graphs)
        assert torch.equal(got.mean, want.mean)
        assert torch.equal(got.std, want.std)
    drawn = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(6))
    for latents in drawn.to(bundle.device):
        want_image = decode_latents(bundle, latents, tile=False)
        (decoded,) = decode_together(bundle, [latents], graphs)
        assert np.array_equal(decoded.wait(), want_image)


def test_captured_texts_have_the_bits_of_texts_as_they_come(rig: Rig, bundle: ModelBundle) -> None:
    captured, plain = PromptEncoder(bundle, capturer=rig.capturer()), PromptEncoder(bundle)
    for texts in [("a house", "blurry"), ("a (red:1.3) house", "a tree " * 60)]:
        assert torch.equal(captured.encode_pair(*texts), plain.encode_pair(*texts))
    assert captured.graphs.captures == 1


def test_a_shared_decode_makes_the_pictures_of_decodes_alone(rig: Rig, bundle: ModelBundle) -> None:
    height, width = bundle.latent_size(rig.size, rig.size)
    graphs = VaeGraphs(rig.capturer(), {(height, width)})
    drawn = torch.randn(4, 4, height, width, generator=torch.Generator().manual_seed(7))
    latents = list(drawn.to(bundle.device))
    together = [one.wait() for one in decode_together(bundle, latents, graphs)]
    for got, one in zip(together, latents, strict=True):
        alone = decode_latents(bundle, one, tile=False)
        assert np.abs(got.astype(int) - alone).max() <= 2


def test_forwards_on_two_streams_do_not_meet(rig: Rig, bundle: ModelBundle) -> None:
    given = [unet_inputs(bundle, rig.scale, rows) for rows in (2, 3)]
    want = [bundle.predict(*one, False) for one in given]
    if not rig.narrow:
        torch.cuda.synchronize()

    def on_a_stream(which: int) -> list[torch.Tensor]:
        stream = nullcontext() if rig.narrow else torch.cuda.stream(torch.cuda.Stream())
        with torch.inference_mode(), stream:
            made = [bundle.predict(*given[which], False) for _ in range(5)]
            if not rig.narrow:
                torch.cuda.current_stream().synchronize()
        return made

    with ThreadPoolExecutor(2) as threads:
        for which, made in enumerate(threads.map(on_a_stream, range(2))):
            assert all(torch.equal(one, want[which]) for one in made)
