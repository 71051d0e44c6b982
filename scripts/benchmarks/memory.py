"""What Stable Diffusion 1.5 takes of a device's memory: counted, predicted, and on a card.

.venv/bin/python scripts/measure_memory                # needs no device: forwards on meta tensors
.venv/bin/python scripts/measure_memory --card-gib 6   # the arithmetic for another card
.venv/bin/python scripts/measure_memory --cuda         # also what torch allocates on CUDA

Counted are the tensors that live at the same time (`models/peak_memory.py`), attention as fused
kernels allocate it, convolutions as cuDNN does. Predicted is what the server plans with: the count
of one small size, in proportion to pixels. The embedded model is counted in real forwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from models.acceleration.modes import ROW_BUCKETS
from models.bundle import ModelBundle
from models.loading.loader import load_bundle
from models.memory import Footprint, MemoryPlan, measure_footprint, without_weights
from models.peak_memory import PeakMemory, peak_on_meta
from pipelines.request import MAX_SIDE
from pipelines.scheduler.batching import GroupKey, StepLimits
from pipelines.vae.passes import (
    VaePass,
    decoder_layers,
    encoder_layers,
    tiled_decoder,
    tiled_encoder,
)
from scripts.checkpoints.without_weights import bundle_without_weights

SIDES = (512, 768, MAX_SIDE)
MIB = 2**20
PLACES = 16
"""Requests that run at a time, as IMG2IMG_MAX_RUNNING_REQUESTS has it."""

Meter = Callable[[Callable[[], object]], float]


def main() -> None:
    """Print all."""
    options = _options()
    dtype = getattr(torch, options.dtype)
    bundle = bundle_without_weights(dtype)
    footprint = measure_footprint(bundle)
    print(f"{bundle.name}, {options.dtype}: MiB counted on meta tensors (predicted)")
    unet, vae = without_weights(bundle.unet, dtype), without_weights(bundle.vae, dtype)
    on_meta = Work(unet, vae, bundle, "meta", lambda run: peak_on_meta(run, on_cuda=True))
    _compare(on_meta, footprint, SIDES)
    if options.cuda:
        print(f"\non {torch.cuda.get_device_name()}: MiB that torch allocated (predicted)")
        for part in (unet, vae):
            part.to_empty(device="cuda")
        _compare(Work(unet, vae, bundle, "cuda", _allocated_on_cuda), footprint, SIDES)
    embedded = load_bundle(device="cpu", dtype="float32")
    print("\nthe embedded model, float32: MiB counted in real forwards on the CPU (predicted)")
    on_cpu = Work(embedded.unet, embedded.vae, embedded, "cpu", _counted_on_cpu)
    _compare(on_cpu, measure_footprint(embedded), (320, 576))
    _card(footprint, options.card_gib, options.dtype)


class Work:
    """Forwards of the sizes that are asked for, and what ``meter`` says of them in bytes."""

    def __init__(self, unet: Any, vae: Any, bundle: ModelBundle, device: str, meter: Meter) -> None:
        self._unet, self._vae, self._bundle = unet, vae, bundle
        self._device, self._meter = device, meter

    def step(self, rows: int, side: int) -> float:
        """A U-Net forward."""
        latents = self._latents(rows, side)
        steps = torch.zeros(rows, device=self._device)
        width = self._bundle.unet.config.cross_attention_dim
        text = self._zeros(rows, self._bundle.text_length, width)
        return self._meter(lambda: self._unet(latents, steps, encoder_hidden_states=text))

    def decode(self, side: int, *, tiled: bool) -> float:
        """A VAE decode, as the engine does it."""
        layers = tiled_decoder(self._vae) if tiled else decoder_layers(self._vae)
        return self._meter(
            lambda: VaePass(self._vae, layers, self._latents(1, side), 1, tile=False).advance()
        )

    def encode(self, side: int, *, tiled: bool) -> float:
        """A VAE encode, as the engine does it."""
        layers = tiled_encoder(self._vae) if tiled else encoder_layers(self._vae)
        return self._meter(
            lambda: VaePass(
                self._vae, layers, self._zeros(1, 3, side, side), 1, tile=False
            ).advance()
        )

    def _latents(self, rows: int, side: int) -> torch.Tensor:
        size = side // self._bundle.downscale
        return self._zeros(rows, self._bundle.latent_channels, size, size)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=self._device, dtype=self._bundle.dtype)


def _compare(work: Work, footprint: Footprint, sides: tuple[int, ...]) -> None:
    print(f"{'':<14}{'U-Net, 2 rows':>20}{'encode':>20}{'decode':>20}{'decode in tiles':>20}")
    for side in sides:
        pixels = side * side
        pairs = [
            (work.step(2, side), footprint.step(2, pixels)),
            (work.encode(side, tiled=False), footprint.encode_pixel * pixels),
            (work.decode(side, tiled=False), footprint.decode_pixel * pixels),
            (work.decode(side, tiled=True), footprint.vae(pixels, tiled=True)),
        ]
        cells = (f"{a / MIB:,.0f} ({b / MIB:,.0f})" for a, b in pairs)
        print(f"{f'{side} x {side}':<14}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


def _card(made: Footprint, gib: float, dtype: str) -> None:
    """The arithmetic of one card."""
    card, pixels = gib * 1024 * MIB, MAX_SIDE**2
    plan = MemoryPlan(made, card - made.weights, PLACES, pixels)
    above = plan.tile_above
    lines = {
        "weights: U-Net, VAE, text encoder": made.weights,
        f"latents of {PLACES} places": made.state(PLACES, pixels),
        "a step of one request, 2 rows": made.step(2, pixels),
        f"VAE, {'whole' if above is None else 'in tiles'}": made.vae(pixels, tiled=bool(above)),
    }
    rest = card - sum(lines.values())
    print(f"\n{MAX_SIDE} x {MAX_SIDE} in {dtype} on a card of {gib:g} GiB ({card / MIB:,.0f} MiB)")
    for name, size in lines.items():
        print(f"  {name:<36}{size / MIB:>8,.0f} MiB")
    print(f"  {'left for CUDA itself and the reserve':<36}{rest / MIB:>8,.0f} MiB")
    print(f"  (a whole decode would take {made.vae(pixels, tiled=False) / MIB:,.0f} MiB)")
    tiles = "never" if above is None else f"above {above / 1e6:.2f} megapixels"
    print(f"planned: {'it fits' if plan.fits(pixels) else 'IT DOES NOT FIT'}; VAE in tiles {tiles}")
    limits = StepLimits(plan.max_rows, plan.max_pixels, ROW_BUCKETS)
    for side in SIDES:
        size = side // made.downscale
        rows = limits.rows_for(GroupKey(size, size, 77, False))
        print(f"  {f'{side} x {side}':<12} up to {rows} rows a step")


def _counted_on_cpu(run: Callable[[], object]) -> float:
    with torch.no_grad(), PeakMemory() as memory:
        run()
    return float(memory.peak)


@torch.inference_mode()
def _allocated_on_cuda(run: Callable[[], object]) -> float:
    run()  # the first one chooses kernels
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--card-gib", type=float, default=8.0, help="GiB of the card [8]")
    parser.add_argument("--cuda", action="store_true", help="measure on CUDA as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
