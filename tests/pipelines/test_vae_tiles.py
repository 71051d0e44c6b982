"""Encode and decode in tiles: when, how near to the whole, and for how much memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from models.bundle import ModelBundle
from models.memory import measure_footprint, without_weights
from models.peak_memory import peak_on_meta
from pipelines.request import Pixels
from pipelines.vae import decode, encode
from pipelines.vae.decode import decode_latents
from pipelines.vae.encode import encode_image
from pipelines.vae.passes import (
    Layer,
    VaePass,
    decoder_layers,
    encoder_layers,
    goes_in_tiles,
    tiled_decoder,
    tiled_encoder,
)

pytestmark = pytest.mark.process


def scene(height: int, width: int) -> Pixels:
    """Soft colours and hard edges, across the borders of tiles."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    image = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], axis=-1)
    image[height // 3 : height // 2, width // 4 : -width // 4] = (0.9, 0.2, 0.1)
    return (image * 255).round().astype(np.uint8)


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


@dataclass(frozen=True, eq=False)
class Made:
    """One picture through the embedded model's VAE, whole and in tiles."""

    moments: list[torch.Tensor]
    decoded: list[Pixels]


@pytest.fixture(scope="module")
def made(embedded: ModelBundle) -> Made:
    """Of 576 x 704: two tiles one above the other, two beside each other."""
    picture = scene(576, 704)
    both = [embedded, replace(embedded, vae_tile_above=512 * 512)]
    with torch.inference_mode():
        moments = [encode_image(bundle, picture, tile=False).mean for bundle in both]
        latents = moments[0] * embedded.scaling_factor
        return Made(moments, [decode_latents(bundle, latents, tile=False) for bundle in both])


def test_tiles_are_near_the_whole(made: Made) -> None:
    whole, tiled = made.moments
    assert 0.0 < (whole - tiled).norm() / whole.norm() < 0.06
    assert made.decoded[0].shape == made.decoded[1].shape == (576, 704, 3)
    assert 38.0 < psnr(*made.decoded) < 100.0


def test_no_seam_where_tiles_meet(made: Made) -> None:
    """The step from column to column is no further from the whole's there than elsewhere."""
    whole, tiled = made.decoded
    error = np.abs(np.diff(tiled.astype(float) - whole, axis=1)).mean(axis=(0, 2))
    borders = [384 - 1, 512 - 1]  # where the second tile begins, and the first one ends
    assert error[borders].max() < error.mean() + 3 * error.std()


def test_a_picture_goes_in_tiles_exactly_above_the_threshold(tiny: ModelBundle) -> None:
    tiling = replace(tiny, vae_tile_above=640 * 640)
    assert not goes_in_tiles(tiling, 640, 640, tile=False)
    assert goes_in_tiles(tiling, 640, 641, tile=False)
    assert goes_in_tiles(tiling, 640, 321, tile=False, share=0.5)
    assert not goes_in_tiles(tiny, 1536, 1536, tile=False)
    # Its opposite edges are to meet.
    assert not goes_in_tiles(tiling, 1536, 1536, tile=True)
    # It would be one tile.
    assert not goes_in_tiles(replace(tiny, vae_tile_above=0), 512, 512, tile=False)


@torch.inference_mode()
def test_encode_and_decode_go_by_it(tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []

    def spied(module: ModuleType, name: str) -> None:
        make = getattr(module, name)
        monkeypatch.setattr(module, name, lambda vae: (chosen.append(name), make(vae))[1])

    for module, way in ((encode, "encoder"), (decode, "decoder")):
        spied(module, f"{way}_layers")
        spied(module, f"tiled_{way}")
    picture = scene(64, 576)
    for above, tile in [(64 * 576, False), (64 * 576 - 1, False), (1, True)]:
        bundle = replace(tiny, vae_tile_above=above)
        latents = encode_image(bundle, picture, tile).mean * tiny.scaling_factor
        assert decode_latents(bundle, latents, tile).shape == picture.shape
    whole, tiled = ["encoder_layers", "decoder_layers"], ["tiled_encoder", "tiled_decoder"]
    assert chosen == whole + tiled + whole


@torch.inference_mode()
def test_a_decode_again_in_float32_has_half_the_room(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    infinite = [Layer(lambda z: torch.full((1, 3, 64, 576), torch.inf), 1.0)]
    monkeypatch.setattr(decode, "decoder_layers", lambda vae: infinite)
    half = replace(tiny, dtype=torch.bfloat16, vae_tile_above=64 * 576)
    latents = torch.zeros(4, 8, 72)
    assert decode_latents(half, latents, tile=False).shape == (64, 576, 3)
    with pytest.raises(FloatingPointError):  # with room for twice the pixels, whole once more
        decode_latents(replace(half, vae_tile_above=2 * 64 * 576), latents, tile=False)


@torch.inference_mode()
def test_a_tiny_autoencoder_has_tiles_of_its_own() -> None:
    vae = AutoencoderTiny().eval()
    x = torch.from_numpy(scene(64, 576)).permute(2, 0, 1)[None] / 127.5 - 1
    want = VaePass(vae, encoder_layers(vae), x, 1, tile=False).advance()
    latents = VaePass(vae, tiled_encoder(vae), x, 1, tile=False).advance()
    assert latents is not None
    assert want is not None
    assert latents.shape == want.shape == (1, 4, 8, 72)
    assert not torch.equal(latents, want)
    assert (latents - want).norm() < 0.05 * want.norm()
    decoded = VaePass(vae, tiled_decoder(vae), latents, 1, tile=False).advance()
    assert decoded is not None
    assert decoded.shape == (1, 3, 64, 576)


@pytest.mark.slow("checkpoints")
def test_tiles_take_less_memory_and_what_is_planned(embedded: ModelBundle) -> None:
    vae = without_weights(embedded.vae, torch.float32)
    latents = torch.empty(1, 4, 192, 192, device="meta")
    picture = torch.empty(1, 3, 1536, 1536, device="meta")
    predicted = measure_footprint(embedded)
    for whole, tiled, x in [
        (decoder_layers, tiled_decoder, latents),
        (encoder_layers, tiled_encoder, picture),
    ]:
        peaks = [
            peak_on_meta(VaePass(vae, make(vae), x, 1, tile=False).advance, on_cuda=False)
            for make in (whole, tiled)
        ]
        assert peaks[1] < peaks[0] / 4
        assert peaks[1] <= predicted.vae(1536 * 1536, tiled=True)
