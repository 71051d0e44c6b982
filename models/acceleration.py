"""How fast a model is made: `IMG2IMG_ACCELERATION`, what of it this device can do, and doing it.

Each mode has all of the one before: ``off`` runs the parts as they are; ``graphs`` fuses the
projections of attention, measures which attention kernel is fastest and captures ticks as CUDA
graphs; ``compile`` compiles the parts for the configured sizes; ``max`` lets the compiler try out
kernels, for minutes.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass

import torch

from models.attention import (
    KERNELS,
    attention_shapes,
    choose_kernels,
    fastest_kernels,
    fuse_projections,
)
from models.bundle import ModelBundle
from models.compiled import compile_parts
from models.graphs import Capturer, CudaCapturer
from models.spec import AccelerationMode


@dataclass(frozen=True)
class Acceleration:
    """What is done: ``reason`` says why it is less than ``asked``, and is empty where it is not."""

    asked: AccelerationMode
    graphs: bool = False
    compiles: bool = False
    autotunes: bool = False
    reason: str = ""

    @property
    def in_words(self) -> str:
        """For a log line or the doctor."""
        done = [
            name
            for name, on in (
                ("CUDA graphs", self.graphs),
                ("compiled", self.compiles),
                ("autotuned", self.autotunes),
            )
            if on
        ]
        return (", ".join(done) or "off") + (f" ({self.reason})" if self.reason else "")


def choose_acceleration(asked: AccelerationMode, device: torch.device) -> Acceleration:
    """What of ``asked`` can be had on ``device``."""
    if asked is AccelerationMode.OFF:
        return Acceleration(asked)
    cuda = device.type == "cuda"
    reasons = []
    if not cuda:
        reasons.append(f"there are no CUDA graphs on {device.type}")
    compiles = asked in (AccelerationMode.COMPILE, AccelerationMode.MAX)
    if compiles and not has_compiler():
        reasons.append("there is no C++ compiler, which torch.compile needs: install g++")
        compiles = False
    return Acceleration(
        asked,
        graphs=cuda,
        compiles=compiles,
        autotunes=compiles and asked is AccelerationMode.MAX,
        reason="; ".join(reasons),
    )


def has_compiler() -> bool:
    """Whether there is a C++ compiler for what torch.compile writes."""
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def accelerate(
    bundle: ModelBundle,
    acceleration: Acceleration,
    sizes: Collection[tuple[int, int]],
    rows: Collection[int] = (),
) -> None:
    """Change ``bundle`` in place, after LoRAs have been fused and before anything runs.

    ``sizes`` are (h, w) of the latents that it is to be fast at, ``rows`` the numbers of rows.
    """
    if acceleration.graphs or acceleration.compiles:
        fuse_projections(bundle.unet)
    bundle.facts["acceleration"] = acceleration.in_words
    if acceleration.graphs and sizes:
        # Where the attention's time goes: the largest of the sizes.
        height, width = max(sizes, key=lambda size: size[0] * size[1])
        shapes = attention_shapes(bundle, height, width)
        kernels = fastest_kernels(shapes, bundle.device, bundle.dtype)
        choose_kernels(bundle.unet, kernels)
        names = {kernel: name for name, kernel in KERNELS.items()}
        bundle.facts["attention kernels"] = ", ".join(
            f"{size}: {names[kernel]}" for size, kernel in kernels.items()
        )
    if acceleration.compiles and sizes:
        bundle.compiled = compile_parts(bundle, sizes, rows, autotune=acceleration.autotunes)


def make_capturer(acceleration: Acceleration, device: torch.device) -> Capturer | None:
    """What captures ticks; None where they run as they come."""
    return CudaCapturer(device) if acceleration.graphs else None
