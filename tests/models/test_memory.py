"""What is planned with, against what is counted; and what fits onto cards that are not here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.bundle import ModelBundle
from models.loading.checkpoint import SD15_FOLDER
from models.loading.loader import load_bundle
from models.memory import SLOTS, Footprint, MemoryPlan, measure_footprint, without_weights
from models.peak_memory import MetaKernels, PeakMemory, peak_on_meta
from pipelines.samplers import programs as samplers
from pipelines.vae.passes import Layer, VaePass, decoder_layers, encoder_layers
from scripts.checkpoints.without_weights import bundle_without_weights

pytestmark = pytest.mark.process

GIB = 2**30
LARGEST = 1536 * 1536


@pytest.fixture(scope="module")
def embedded() -> ModelBundle:
    return load_bundle(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def full_size() -> ModelBundle:
    """Stable Diffusion 1.5 in float16, as if on CUDA."""
    return bundle_without_weights()


@pytest.fixture(scope="module")
def footprint(full_size: ModelBundle) -> Footprint:
    return measure_footprint(full_size)


def plan(footprint: Footprint, gib: float, asked: int | None = None) -> MemoryPlan:
    """On a card of so many GiB, of which CUDA itself takes nothing."""
    return MemoryPlan(footprint, gib * GIB - footprint.weights, 16, LARGEST, asked)


@torch.no_grad()
def test_the_peak_is_of_what_lives_at_the_same_time() -> None:
    with PeakMemory() as memory:
        x = torch.zeros(1000)  # 4000 bytes
        assert (memory.now, memory.peak) == (4000, 4000)
        y = x + 1
        del x
        y.mul_(2)
        assert memory.now == 4000
        assert y.view(10, 100)[3:].sum() == 1400  # a view is free, the sum and the test are not
        del y
        assert memory.now < 100
    assert 8000 <= memory.peak < 8100


@torch.no_grad()
def test_what_was_there_before_is_not_counted() -> None:
    linear, x = torch.nn.Linear(64, 64), torch.zeros(2, 64)
    with PeakMemory() as memory:
        made = linear(x)
    assert memory.peak == made.nbytes


def test_attention_on_meta_has_no_scores() -> None:
    query = torch.empty(1, 8, 4096, 40, dtype=torch.float16, device="meta")

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, query, query)

    assert peak_on_meta(attend, on_cuda=True) == query.nbytes
    with PeakMemory() as memory, torch.no_grad():
        attend()
    assert memory.peak > 8 * 4096 * 4096


def test_a_convolution_on_cuda_copies_the_other_layout() -> None:
    convolution = torch.nn.Conv2d(8, 8, 3, padding=1, device="meta")
    convolution.weight.data = convolution.weight.data.to(memory_format=torch.channels_last)
    x = torch.empty(1, 8, 16, 16, device="meta")
    same = x.to(memory_format=torch.channels_last)
    with torch.no_grad(), MetaKernels(on_cuda=True):
        assert convolution(x).is_contiguous(memory_format=torch.channels_last)
    assert peak_on_meta(lambda: convolution(x), on_cuda=True) == 2 * x.nbytes
    assert peak_on_meta(lambda: convolution(same), on_cuda=True) == x.nbytes
    assert peak_on_meta(lambda: convolution(x), on_cuda=False) == x.nbytes


def counted(run: Callable[[], object]) -> int:
    with torch.no_grad(), PeakMemory() as memory:
        run()
    return memory.peak


@pytest.mark.parametrize(("width", "height"), [(320, 320), (448, 384)])
def test_the_embedded_model_takes_what_is_predicted(
    embedded: ModelBundle, width: int, height: int
) -> None:
    predicted = measure_footprint(embedded)
    h, w = embedded.latent_size(width, height)
    for rows in (1, 2):
        text = torch.zeros(rows, 77, embedded.text_width)
        latents = torch.zeros(rows, 4, h, w)
        step = counted(
            lambda x=latents, t=text: embedded.unet(x, torch.zeros(len(x)), encoder_hidden_states=t)
        )
        assert step == pytest.approx(predicted.step(rows, width * height), rel=0.1)

    def whole(layers: list[Layer], *shape: int) -> Callable[[], object]:
        return lambda: VaePass(embedded.vae, layers, torch.zeros(shape), 1, tile=False).advance()

    encode = counted(whole(encoder_layers(embedded.vae), 1, 3, height, width))
    decode = counted(whole(decoder_layers(embedded.vae), 1, 4, h, w))
    assert encode == pytest.approx(predicted.encode_pixel * width * height, rel=0.1)
    assert decode == pytest.approx(predicted.decode_pixel * width * height, rel=0.1)


def test_one_small_size_tells_of_the_largest(full_size: ModelBundle, footprint: Footprint) -> None:
    unet = without_weights(full_size.unet, full_size.dtype)
    vae = without_weights(full_size.vae, full_size.dtype)
    latents = torch.empty(2, 4, 192, 192, dtype=torch.float16, device="meta")
    text = torch.empty(2, 77, 768, dtype=torch.float16, device="meta")
    steps = torch.empty(2, device="meta")
    step = peak_on_meta(lambda: unet(latents, steps, encoder_hidden_states=text), on_cuda=True)
    decode = peak_on_meta(lambda: vae.decode(latents[:1]), on_cuda=True)
    assert step == pytest.approx(footprint.step(2, LARGEST), rel=0.02)
    assert decode == pytest.approx(footprint.vae(LARGEST, tiled=False), rel=0.02)
    # At a decode's peak there are at least a residual of 256 channels, what the norm made of it
    # and what the convolution made of that, in float16.
    assert decode > (256 + 256 + 128) * 2 * LARGEST


def test_more_takes_more(footprint: Footprint) -> None:
    sizes = [64 * k for k in range(5, 25)]
    steps = [footprint.step(2, s * s) for s in sizes]
    whole = [footprint.vae(s * s, tiled=False) for s in sizes]
    tiled = [footprint.vae(s * s, tiled=True) for s in sizes]
    assert all(series == sorted(set(series)) for series in (steps, whole, tiled))
    assert footprint.step(3, 512**2) > footprint.step(2, 512**2)
    assert footprint.vae(LARGEST, tiled=True) < footprint.vae(LARGEST, tiled=False) / 4
    assert footprint.state(16, LARGEST) == 16 * SLOTS * 4 * 192 * 192 * 4
    assert SLOTS == samplers.SLOTS


def test_a_tiny_autoencoder_is_counted_alike(footprint: Footprint) -> None:
    tiny = measure_footprint(bundle_without_weights(vae=SD15_FOLDER / "tiny_vae"))
    assert tiny.row_pixel == footprint.row_pixel
    assert 0 < tiny.decode_pixel < footprint.decode_pixel


def test_the_largest_picture_fits_onto_8_gib_in_tiles(footprint: Footprint) -> None:
    card = plan(footprint, 8)
    assert card.fits(LARGEST)
    assert card.tile_above is not None
    assert 1024**2 < card.tile_above < LARGEST
    assert card.max_pixels >= 2 * 128 * 128  # two rows of 1024 x 1024 at least
    assert card.usable < 0.8 * 8 * GIB - footprint.weights * 0.8


@pytest.mark.parametrize("gib", [4, 6, 8, 12, 24, 80])
def test_steps_fit_beside_any_vae_pass(footprint: Footprint, gib: int) -> None:
    card = plan(footprint, gib)
    above = card.tile_above or LARGEST
    passes = [(s * s, s * s > above) for s in range(320, 1537, 64)]
    worst = max(footprint.vae(pixels, tiled=tiled) for pixels, tiled in passes)
    step = card.max_pixels * footprint.row_pixel
    assert worst + step <= card.usable
    assert 2 * step <= card.usable  # the captured one's, and one that is not captured
    assert worst + step > 0.9 * card.usable or step > 0.45 * card.usable


def test_a_larger_card_takes_more_and_a_large_one_needs_no_tiles(footprint: Footprint) -> None:
    cards = [plan(footprint, gib) for gib in (3, 4, 6, 8, 12, 24)]
    thresholds = [card.tile_above or LARGEST for card in cards]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[3] < thresholds[4] == LARGEST
    assert cards[-1].max_pixels > cards[3].max_pixels > cards[1].max_pixels
    assert plan(footprint, 80).tile_above is None


def test_a_card_that_is_too_small_is_known(footprint: Footprint) -> None:
    small = plan(footprint, 3)
    assert small.fits(512**2)
    assert not small.fits(LARGEST)
    nothing = plan(footprint, 1)
    assert nothing.usable == nothing.max_pixels == 0
    assert nothing.tile_above == 512**2


def test_the_threshold_can_be_asked_for(footprint: Footprint) -> None:
    assert plan(footprint, 80, 500_000).tile_above == 500_000
    assert plan(footprint, 8, LARGEST).tile_above is None
    assert not plan(footprint, 8, LARGEST).fits(LARGEST)
    # What whole passes do not take is for steps.
    assert plan(footprint, 8, 500_000).max_pixels > plan(footprint, 8).max_pixels
