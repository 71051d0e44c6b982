"""Modes of acceleration, `IMG2IMG_ACCELERATION`: choosing one for a device, and applying it.

``off`` runs the parts as they are. ``graphs`` runs forwards of our own over their weights
(`models/acceleration/fast_forwards.py`), with the fastest kernel of attention, captured as CUDA
graphs. ``compile`` compiles the parts for the configured sizes instead, ``max`` lets the compiler
try out kernels, for minutes; both fuse projections and capture steps too.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from models.acceleration.attention import (
    Order,
    attention_shapes,
    choose_kernels,
    fuse_projections,
    kernel_orders,
    orders_in_words,
)
from models.acceleration.compiled import compile_parts
from models.acceleration.cuda_graphs import Capturer, CudaCapturer
from models.acceleration.fast_forwards import FACT, make_forwards, predict_by_modules
from models.bundle import ModelBundle
from models.device import make_current
from models.errors import first_line
from models.spec import AccelerationMode

logger = logging.getLogger(__name__)

ROW_BUCKETS = (1, 2, 4, 8, 16)
"""The numbers of U-Net rows that steps are padded to where each needs a graph or a compilation of
its own; also those whose cost is measured."""


@dataclass(frozen=True)
class Acceleration:
    """The acceleration in use: ``reason`` says why it is less than ``asked``, and is empty where it
    is not."""

    asked: AccelerationMode
    graphs: bool = False
    compiles: bool = False
    autotunes: bool = False
    reason: str = ""

    @property
    def forwards(self) -> bool:
        """Return whether forwards of our own take the parts' place, where they can."""
        return self.graphs and self.asked is AccelerationMode.GRAPHS

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Return the numbers of rows that steps are padded to; empty where any number will do."""
        return ROW_BUCKETS if self.graphs or self.compiles else ()

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


UNACCELERATED = Acceleration(AccelerationMode.OFF)


def choose_acceleration(asked: AccelerationMode, device: torch.device) -> Acceleration:
    """Return as much of ``asked`` as can be had on ``device``."""
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
    """Return whether there is a C++ compiler for what torch.compile writes."""
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def accelerate(
    bundle: ModelBundle,
    acceleration: Acceleration,
    sizes: Collection[tuple[int, int]],
    rows: Collection[int] = (),
    fixed: bool = False,
) -> None:
    """Change ``bundle`` in place, after LoRAs have been fused and before anything runs.

    ``sizes`` are (h, w) of the latents that it is to be fast at, ``rows`` the numbers of rows. With
    ``fixed`` kernels of attention are not chosen by their times, which vary from start to start.
    """
    if acceleration.graphs or acceleration.compiles:
        fuse_projections(bundle.unet)
    bundle.facts["acceleration"] = acceleration.in_words
    if acceleration.graphs:
        _choose_kernels(bundle, acceleration, sizes, rows, fixed)
    if acceleration.compiles and sizes:
        bundle.compiled = compile_parts(bundle, sizes, rows, autotune=acceleration.autotunes)


def _choose_kernels(
    bundle: ModelBundle,
    acceleration: Acceleration,
    sizes: Collection[tuple[int, int]],
    rows: Collection[int],
    fixed: bool,
) -> None:
    """Attention's kernels, and the forwards that run them: ours, or else the modules."""
    # Triton launches on the current card; on the engine's thread that is set once.
    make_current(bundle.device)
    # Where the attention's time goes: the largest of the sizes, the largest step.
    height, width = max(sizes or [bundle.latent_size(512, 512)], key=lambda size: size[0] * size[1])
    shapes = attention_shapes(bundle, height, width)
    orders = kernel_orders(shapes, bundle.device, bundle.dtype, max(rows, default=2), fixed=fixed)
    bundle.facts["attention kernels"] = orders_in_words(orders)
    if acceleration.forwards:
        bundle.fast = make_forwards(bundle, orders)
        bundle.facts[FACT] = bundle.fast.in_words
    if orders and (bundle.fast is None or bundle.fast.unet is None):
        _give_modules(bundle, orders)


def _give_modules(bundle: ModelBundle, orders: Mapping[int, Order]) -> None:
    """Run attention's modules through ``orders``, unless they fail by them: a kernel that torch
    selects may do so in the U-Net alone."""
    before = dict(bundle.unet.attn_processors)
    choose_kernels(bundle.unet, orders)
    try:
        predict_by_modules(bundle)
    except Exception as error:  # whatever a kernel or a driver makes of this device
        bundle.unet.set_attn_processor(before)
        bundle.facts["attention kernels"] = f"torch's choice ({first_line(error)})"
        logger.warning("attention runs by torch's choice of kernels, because one failed: %s", error)


def describe_forwards(bundle: ModelBundle, acceleration: Acceleration) -> str:
    """Return what the parts would run through, in words, for the doctor.

    Where that is kernels of our own they are made and tried: ``bundle`` is changed as at a start.
    """
    if acceleration.forwards:
        accelerate(bundle, acceleration, ())
        return bundle.facts[FACT]
    if acceleration.asked is AccelerationMode.GRAPHS:
        return f"its modules (kernels of our own need CUDA, not {bundle.device.type})"
    return f"its modules (IMG2IMG_ACCELERATION={acceleration.asked.value})"


def make_capturer(acceleration: Acceleration, device: torch.device) -> Capturer | None:
    """Return what captures steps; None where they run as they come."""
    return CudaCapturer(device) if acceleration.graphs else None
