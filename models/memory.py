"""The device memory that a model's work takes, and the largest work that fits.

Bytes are counted, not fitted: one small forward of the U-Net, the encoder and the decoder runs on
meta tensors (`peak_memory`) at the start, which takes well under a second and no memory, for any
configuration. All three are linear in pixels, so one size tells of every other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from models.bundle import ModelBundle
from models.loading.autoencoder import TILE_SIDE
from models.peak_memory import peak_on_meta

RESERVE = 0.2
"""The share of the free memory that no plan counts on.

For what cannot be counted: workspaces of cuDNN and cuBLAS, fragments of the allocator, the latents
of further sizes, prompts, previews.
"""

SLOTS = 4
"""Copies of a request's latents that the engine holds, in float32: the slots of a sampler."""

_MEASURED_SIDE = 320
_MEASURED_ROWS = 2


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model's work allocates beside its weights.

    ``row_pixel`` is of a U-Net forward, for every row and latent pixel; ``encode_pixel`` and
    ``decode_pixel`` for every pixel of a whole picture. ``tiled_pixel`` is what is held for every
    pixel of a picture that goes through the VAE in tiles; a tile itself comes on top.
    """

    weights: int
    row_pixel: float
    encode_pixel: float
    decode_pixel: float
    tiled_pixel: float
    latent_channels: int
    downscale: int

    def step(self, rows: int, pixels: int) -> float:
        """Bytes of a U-Net forward of ``rows`` rows of pictures of ``pixels`` pixels."""
        return self.row_pixel * rows * pixels / self.downscale**2

    def state(self, places: int, pixels: int) -> float:
        """Bytes of the latents of ``places`` requests of pictures of ``pixels`` pixels."""
        return 4.0 * SLOTS * self.latent_channels * places * pixels / self.downscale**2

    def vae(self, pixels: int, *, tiled: bool) -> float:
        """Bytes of the larger of an encode and a decode, one picture at a time."""
        worst = max(self.encode_pixel, self.decode_pixel)
        if not tiled:
            return worst * pixels
        return worst * min(pixels, TILE_SIDE**2) + self.tiled_pixel * pixels


def measure_footprint(bundle: ModelBundle) -> Footprint:
    """Count what ``bundle``'s configuration allocates in its dtype, on meta tensors.

    Attention counts as fused, see `MetaKernels`. Any configuration that loads can be counted.
    """
    unet, vae = bundle.unet, bundle.vae
    dtype, on_cuda = bundle.dtype, bundle.device.type == "cuda"
    small, scale = _MEASURED_SIDE // bundle.downscale, bundle.downscale
    empty_unet, empty_vae = without_weights(unet, dtype), without_weights(vae, dtype)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = _MEASURED_ROWS
    latents = empty(rows, bundle.latent_channels, small, small)
    text = empty(rows, bundle.text_length, int(unet.config.cross_attention_dim))
    steps = torch.empty(rows, device="meta")
    one = latents[:1]
    picture = empty(1, 3, small * scale, small * scale)
    step = peak_on_meta(lambda: empty_unet(latents, steps, encoder_hidden_states=text), on_cuda)
    encode = peak_on_meta(lambda: empty_vae.encode(picture), on_cuda)
    decode = peak_on_meta(lambda: empty_vae.decode(one), on_cuda)
    pixels = float(small * small)
    overlap = float(vae.tile_overlap_factor)
    return Footprint(
        weights=bundle.weight_bytes,
        row_pixel=step / (rows * pixels),
        encode_pixel=encode / (pixels * scale**2),
        decode_pixel=decode / (pixels * scale**2),
        # All tiles are kept until the last one is there; they overlap. Float32 at the most.
        tiled_pixel=3 * 4 / (1.0 - overlap) ** 2,
        latent_channels=bundle.latent_channels,
        downscale=scale,
    )


def without_weights(part: Any, dtype: torch.dtype) -> Any:
    """The same configuration on the meta device, in channels_last as `parts.fill` makes it.

    Not the loaded part itself: that may be compiled, or in use.
    """
    config = {name: value for name, value in part.config.items() if not name.startswith("_")}
    if type(part).__name__ == "AutoencoderTiny":
        # The class registers it and complains of it when it reads it.
        config.pop("block_out_channels", None)
    with torch.device("meta"):
        made = type(part)(**config)
    for parameter in made.parameters():
        layout = torch.channels_last if parameter.ndim == 4 else torch.contiguous_format
        parameter.data = parameter.data.to(dtype=dtype, memory_format=layout)
    return made.eval()


@dataclass(frozen=True)
class MemoryPlan:
    """The work that fits beside the weights into ``available`` bytes, of which `RESERVE` stays
    free.

    ``places`` requests run at a time, of pictures of at most ``largest`` pixels. ``tile_above``,
    in pixels, is asked for by the operator; None lets the plan choose.
    """

    footprint: Footprint
    available: float
    places: int
    largest: int
    asked_tile_above: int | None = None

    @property
    def usable(self) -> float:
        """Bytes for the U-Net and the VAE."""
        state = self.footprint.state(self.places, self.largest)
        return max(0.0, self.available * (1.0 - RESERVE) - state)

    @property
    def tile_above(self) -> int | None:
        """Pixels of a picture above which the VAE runs in tiles; None: never.

        Where a whole pass does not fit beside a step of one request, two rows, of that picture.
        The two do not run at the same time, but each keeps what it has: a pass between its parts,
        a step in its graphs and the allocator's cache.
        """
        if self.asked_tile_above is not None:
            above = self.asked_tile_above
        else:
            made = self.footprint
            above = int(self.usable / (made.vae(1, tiled=False) + made.step(2, 1)))
            above = max(above, TILE_SIDE**2)  # a tile is no smaller
        return None if above >= self.largest else above

    @property
    def max_rows(self) -> int:
        """U-Net rows of all requests that run at a time."""
        return 2 * self.places

    @property
    def max_pixels(self) -> int:
        """Latent pixels over all rows of a step that fit beside the most expensive VAE pass.

        At most half of what is usable: captured steps keep the memory of the largest of them,
        and a step that is not captured needs its own beside that.
        """
        left = min(self.usable - self._worst_vae, self.usable / 2)
        return max(0, int(left / self.footprint.row_pixel))

    def fits(self, pixels: int) -> bool:
        """Return whether one request of a picture of ``pixels`` pixels does."""
        tiled = self.tile_above is not None and pixels > self.tile_above
        vae = self.footprint.vae(pixels, tiled=tiled)
        return vae + self.footprint.step(2, pixels) <= self.usable

    @property
    def _worst_vae(self) -> float:
        above = self.tile_above
        if above is None:
            return self.footprint.vae(self.largest, tiled=False)
        whole = self.footprint.vae(above, tiled=False)
        return max(whole, self.footprint.vae(self.largest, tiled=True))


def free_device_bytes(device: torch.device) -> int:
    """Return the bytes that a CUDA device can still give: free ones and those torch holds
    unused."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)
