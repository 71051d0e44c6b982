"""Kernels and bytes are counted as a card would launch and move them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from models.acceleration.triton_kernels import NEXT, PROVEN
from scripts.benchmarks.kernels.counting import Count, CountingKernels, count_forward

PICTURE = 2 * 64 * 16 * 16 * 2
"""Bytes of (2, 64, 16, 16) in half precision."""


def picture() -> torch.Tensor:
    made = torch.empty(2, 64, 16, 16, dtype=torch.float16, device="meta")
    return made.contiguous(memory_format=torch.channels_last)


def test_modules_pay_for_layouts_and_biases() -> None:
    with torch.device("meta"):
        layers = torch.nn.Sequential(
            torch.nn.GroupNorm(8, 64), torch.nn.SiLU(), torch.nn.Conv2d(64, 64, 3, padding=1)
        ).half()
    for parameter in layers.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    count = count_forward(lambda _: layers(picture()))
    # Out of channels_last for the norm, back again for the convolution.
    assert count.launches == {"norm": 3, "copy": 3, "elementwise": 2, "convolution": 1}
    assert count.moved["copy"] == 2 * PICTURE * 3  # the input of the test is laid out as well
    assert count.moved["norm"] == 3 * PICTURE
    assert count.moved["elementwise"] == 2 * PICTURE + 2 * PICTURE
    assert count.moved["convolution"] == 2 * PICTURE + 64 * 64 * 9 * 2


def test_our_kernels_count_as_they_are_launched() -> None:
    norm = torch.nn.GroupNorm(8, 64).half()
    launched = {}
    for name, geometry in (("proven", PROVEN), ("next", NEXT)):
        count = Count()
        kernels = CountingKernels(count, geometry)
        x = picture()
        count_forward(lambda _, k=kernels, x=x: k.group_norm(x, norm, silu=True), count)
        launched[name] = count.launches["norm"], count.moved["norm"]
    # Small pictures are normed by one kernel, which reads them once.
    assert launched == {"proven": (3, 3 * PICTURE), "next": (1, 2 * PICTURE)}
