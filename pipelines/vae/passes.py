"""A VAE pass that can be put down and taken up again: encode and decode as parts of equal cost.

A large picture's decode takes many steps' time. Cut into tiles it would show seams, because its
group norms and its attention see the whole picture; so it is cut between layers instead. The same
layers run in the same order on the same tensors as in `AutoencoderKL.encode` and `decode`: not a
bit of the picture differs.

Where a whole pass does not fit into the device's memory it runs in tiles all the same, diffusers'
own: they overlap and are blended, but each has its own group norms and attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from models.bundle import ModelBundle, VaeStep, downscale
from models.loading.autoencoder import TILE_SIDE
from models.padding import circular_padding

Tensor = torch.Tensor


@dataclass(frozen=True)
class Layer:
    """One layer and its cost per pixel of the picture, in multiply-adds (a rough count)."""

    run: Callable[[Tensor], Tensor]
    cost: float


def goes_in_tiles(
    bundle: ModelBundle, height: int, width: int, tile: bool, share: float = 1.0
) -> bool:
    """Return whether the VAE takes a picture in tiles, with ``share`` of the pixels that go in
    whole.

    Never one that is no larger than a tile, and never one whose opposite edges are to meet
    (``tile``): its tiles would each meet themselves.
    """
    above = bundle.vae_tile_above
    if tile or above is None or max(height, width) <= TILE_SIDE:
        return False
    return height * width > share * above


def encoder_layers(vae: Any) -> list[Layer]:
    """(B, 3, H, W) pictures in -1..1 -> (B, 2 * channels, h, w) moments.

    An AutoencoderTiny is one layer, (B, channels, h, w) latents: it has no posterior.
    """
    if not _is_kl(vae):
        return [Layer(lambda x: vae.encode(x, return_dict=False)[0], 1.0)]
    encoder = vae.encoder
    layers = [_layer(encoder.conv_in, 1.0)]
    scale = 1.0
    for block in encoder.down_blocks:
        layers += [_layer(resnet, scale, temb=None) for resnet in block.resnets]
        for down in block.downsamplers or ():
            scale /= 4
            layers.append(_layer(down, scale))
    layers += _middle(encoder.mid_block, scale)
    layers.append(_head(encoder, scale))
    if vae.quant_conv is not None:
        layers.append(_layer(vae.quant_conv, scale))
    return layers


def decoder_layers(vae: Any) -> list[Layer]:
    """(B, channels, h, w) latents -> (B, 3, H, W) pictures in -1..1. One layer if it is tiny."""
    if not _is_kl(vae):
        return [Layer(lambda z: vae.decode(z, return_dict=False)[0], 1.0)]
    decoder = vae.decoder
    scale = 0.25 ** (len(vae.config.block_out_channels) - 1)
    layers = [_layer(vae.post_quant_conv, scale)] if vae.post_quant_conv is not None else []
    layers.append(_layer(decoder.conv_in, scale))
    layers += _middle(decoder.mid_block, scale)
    for block in decoder.up_blocks:
        layers += [_layer(resnet, scale, temb=None) for resnet in block.resnets]
        for up in block.upsamplers or ():
            scale *= 4
            layers.append(_layer(up, scale))
    layers.append(_head(decoder, scale))
    return layers


def fast_layers(steps: Sequence[VaeStep], tile: bool) -> list[Layer]:
    """The same of a forward of our own (`models.acceleration.vae`); ``tile`` pads circularly."""

    def layer(step: VaeStep) -> Layer:
        return Layer(lambda x: step.run(x, tile), step.cost)

    return [layer(step) for step in steps]


def in_one(layers: Sequence[Layer]) -> Callable[[Tensor], Tensor]:
    """Return the function that is all of ``layers``, one after the other."""

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer.run(x)
        return x

    return run


def tiled_encoder(vae: Any) -> list[Layer]:
    """As `encoder_layers`, in tiles: one layer, which cannot be put down on the way."""
    _set_tiles(vae)
    return [Layer(vae._tiled_encode, 1.0)]


def tiled_decoder(vae: Any) -> list[Layer]:
    """As `decoder_layers`, in tiles: one layer, which cannot be put down on the way."""
    _set_tiles(vae)
    if _is_kl(vae):
        return [Layer(lambda z: vae.tiled_decode(z, return_dict=False)[0], 1.0)]
    return [Layer(vae._tiled_decode, 1.0)]


def _is_kl(vae: Any) -> bool:
    from diffusers import AutoencoderKL  # takes seconds to import

    return isinstance(vae, AutoencoderKL)


def _set_tiles(vae: Any) -> None:
    """Tiles of one size for every model: diffusers takes it from ``sample_size``, 32 if unsaid.

    The two numbers are read by the tiled passes alone.
    """
    vae.tile_sample_min_size = TILE_SIDE
    vae.tile_latent_min_size = TILE_SIDE // downscale(vae)


def _layer(module: torch.nn.Module, scale: float, **options: Any) -> Layer:
    weights = sum(p.numel() for p in module.parameters())
    return Layer(lambda x: module(x, **options), weights * scale)


def _middle(block: Any, scale: float) -> Iterator[Layer]:
    yield _layer(block.resnets[0], scale, temb=None)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield _layer(attention, scale, temb=None)
        yield _layer(resnet, scale, temb=None)


def _head(half: Any, scale: float) -> Layer:
    """Norm, activation and last convolution, together."""
    weights = sum(p.numel() for p in half.conv_out.parameters())
    return Layer(lambda x: half.conv_out(half.conv_act(half.conv_norm_out(x))), weights * scale)


class VaePass:
    """One encode or decode under way. ``parts`` calls of `advance` finish it."""

    def __init__(
        self, vae: torch.nn.Module, layers: list[Layer], x: Tensor, parts: int, *, tile: bool
    ) -> None:
        self._vae, self._tile = vae, tile
        self._slices = partition([layer.cost for layer in layers], parts)
        self._layers, self._x, self._part = layers, x, 0

    def advance(self) -> Tensor | None:
        """Run the next part. None until the last one, which gives the result."""
        with circular_padding(self._tile, self._vae):
            for layer in self._layers[self._slices[self._part]]:
                self._x = layer.run(self._x)
        self._part += 1
        return self._x if self._part == len(self._slices) else None


def in_float32(
    bundle: ModelBundle,
    x: Tensor,
    size: tuple[int, int],
    tile: bool,
    whole: Callable[[Any], list[Layer]],
    tiled: Callable[[Any], list[Layer]],
) -> Tensor:
    """Run a whole pass of a picture of ``size``, (H, W), that overflowed half precision once more.

    ``whole`` and ``tiled`` give its layers. Float32 takes twice the memory.
    """
    # A copy for the once: the weights in use, and graphs over them, stay as they are.
    vae = deepcopy(bundle.vae).float()
    in_tiles = goes_in_tiles(bundle, *size, tile, share=0.5)
    layers = tiled(vae) if in_tiles else whole(vae)
    made = VaePass(vae, layers, x, 1, tile=tile).advance()
    assert made is not None
    return made


def partition(costs: list[float], parts: int) -> list[slice]:
    """``parts`` consecutive slices of ``costs``, each ending where its share of the sum does.

    Some are empty where there are fewer costs than parts, or one outweighs the others.
    """
    total, ends, spent = sum(costs), [], 0.0
    for cost in costs:
        # A layer belongs to the part that its middle falls into.
        ends.append(min(parts - 1, int((spent + cost / 2) / total * parts)) if total else 0)
        spent += cost
    firsts = [
        next((i for i, e in enumerate(ends) if e >= part), len(costs)) for part in range(parts)
    ]
    return [slice(a, b) for a, b in zip(firsts, [*firsts[1:], len(costs)], strict=True)]
