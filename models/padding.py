"""Circular convolution padding, so that a picture tiles without a seam.

Padding is a property of a whole forward: every convolution of the U-Net and the VAE pads with the
opposite edge, or none does. Requests that tile are therefore batched only with their kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def circular_padding(enabled: bool, *modules: torch.nn.Module) -> Iterator[None]:
    """Within the context every padded Conv2d of ``modules`` pads circularly, if ``enabled``."""
    if not enabled:
        yield
        return
    convolutions = [
        m
        for module in modules
        for m in module.modules()
        if isinstance(m, torch.nn.Conv2d) and m.padding_mode == "zeros"
    ]
    for convolution in convolutions:
        convolution.padding_mode = "circular"
    try:
        yield
    finally:
        for convolution in convolutions:
            convolution.padding_mode = "zeros"
