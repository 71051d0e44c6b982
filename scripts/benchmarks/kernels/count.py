"""Count the kernels and bytes of Stable Diffusion 1.5's forwards, old path and new, by category.

    .venv/bin/python scripts/count_kernels > docs/benchmarks/kernels.md

On meta tensors: nothing is measured, no card is needed. It takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from models.acceleration.attention import fuse_projections
from models.acceleration.triton_kernels import NEXT, PROVEN
from models.acceleration.unet import FastUNet
from models.acceleration.vae import FastVae
from models.bundle import VaeStep
from models.loading.checkpoint import SD15_FOLDER
from models.loading.parts import read_config
from models.memory import without_weights
from scripts.benchmarks.kernels.counting import Count, CountingKernels, count_forward
from scripts.benchmarks.kernels.page import Case, page

HALF = torch.float16


def empty_model(kind: Any, part: str) -> Any:
    """A part of Stable Diffusion 1.5 on the meta device."""
    with torch.device("meta"):
        made = kind.from_config(read_config(SD15_FOLDER / part))
    return without_weights(made, HALF).requires_grad_(False)


def empty(*shape: int) -> torch.Tensor:
    """Half precision on the meta device."""
    return torch.empty(shape, dtype=HALF, device="meta")


def unet_case(rows: int) -> Case:
    """A forward of 512 x 512 pictures."""
    latents, text = empty(rows, 4, 64, 64), empty(rows, 77, 768)
    steps = torch.empty(rows, device="meta")
    counts: list[Count] = []
    modules = empty_model(UNet2DConditionModel, "unet")
    fuse_projections(modules)
    counts.append(count_forward(lambda _: modules(latents, steps, encoder_hidden_states=text)))
    for geometry in (PROVEN, NEXT):
        count = Count()
        unet = empty_model(UNet2DConditionModel, "unet")
        fast = FastUNet(unet, CountingKernels(count, geometry), {})

        def forward(_: Count, fast: FastUNet = fast) -> object:
            return fast(latents, steps, text)

        counts.append(count_forward(forward, count))
    return Case(f"U-Net, {rows} rows", *counts)


def vae_case(name: str, pictures: int) -> Case:
    """An encode or a decode of 512 x 512 pictures."""
    x = empty(pictures, 3, 512, 512) if name == "encode" else empty(pictures, 4, 64, 64)
    modules = empty_model(AutoencoderKL, "vae")
    counts = [count_forward(lambda _: getattr(modules, name)(x))]
    for geometry in (PROVEN, NEXT):
        count = Count()
        vae = empty_model(AutoencoderKL, "vae")
        fast = FastVae(vae, CountingKernels(count, geometry))
        steps = fast.encoder if name == "encode" else fast.decoder

        def forward(_: Count, steps: list[VaeStep] = steps) -> None:
            run(steps, x)

        counts.append(count_forward(forward, count))
    return Case(f"{name}, {pictures} pictures", *counts)


def run(steps: list[VaeStep], x: torch.Tensor) -> None:
    """All steps, one after the other."""
    for step in steps:
        x = step.run(x, False)


def main() -> None:
    """Print the page."""
    unets = [(rows, unet_case(rows)) for rows in (2, 16)]
    vaes = [vae_case("decode", 1), vae_case("encode", 1)]
    print(page([case for _, case in unets] + vaes, unets), end="")


if __name__ == "__main__":
    main()
