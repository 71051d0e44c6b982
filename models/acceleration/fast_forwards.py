"""Our own forwards: the choice of them, and the proof at start that they compute the same.

They are for CUDA and the mode ``graphs``. Whatever stands in the way (no Triton, a U-Net or a VAE
of another shape, quantised layers, a kernel that fails, a result that is not the modules') leaves
the modules in place, which compute the same: that is said once in the log and by the doctor.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from models.acceleration.attention import Order
from models.acceleration.kernel_cache import use_compiled
from models.acceleration.torch_kernels import Kernels
from models.acceleration.unet import FastUNet
from models.acceleration.unet import unsupported_reason as unet_reason
from models.acceleration.vae import FastVae
from models.acceleration.vae import unsupported_reason as vae_reason
from models.bundle import FastForwards, ModelBundle
from models.errors import first_line

logger = logging.getLogger(__name__)

FACT = "forwards"
"""Among a bundle's facts: what its U-Net and its VAE run through."""

KernelChoice = Literal["proven", "next"]
KERNELS: KernelChoice = "proven"
"""Which kernels serve. ``next`` waits for a card that has shown them right and faster
(`scripts/count_kernels` says what is expected of them); then this line changes."""

Trial = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Latents, timesteps and text."""

_TOLERANCE = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest relative difference to the modules: two roundings of a forward, with room to spare.
bfloat16 has an eighth of float16's precision."""


def triton_kernels(choice: KernelChoice) -> Kernels:
    """Return the kernels of a choice. Raises ImportError where there is no Triton."""
    use_compiled()
    from models.acceleration.triton_kernels import NEXT, PROVEN, TritonKernels

    return TritonKernels(NEXT if choice == "next" else PROVEN)


def make_forwards(
    bundle: ModelBundle,
    orders: Mapping[int, Order],
    choice: KernelChoice = KERNELS,
    make_kernels: Callable[[KernelChoice], Kernels] = triton_kernels,
) -> FastForwards:
    """Make what can be made of a bundle's parts and hold it against the modules.

    Changes where the U-Net's weights lie (see `FastUNet`), not their values. Never raises.
    """
    reasons: dict[str, str] = {}
    unet = vae = None
    if reason := unet_reason(bundle.unet):
        reasons["U-Net"] = reason
    if reason := vae_reason(bundle.vae):
        reasons["VAE"] = reason
    try:
        kernels = make_kernels(choice)
    except Exception as error:  # no Triton, or one that does not work with this torch
        why = f"Triton cannot be used: {_in_words(error)}"
        reasons = {name: reasons.get(name, why) for name in ("U-Net", "VAE")}
    else:
        if "U-Net" not in reasons:
            unet = _tried(reasons, "U-Net", lambda: _checked_unet(bundle, kernels, orders))
        if "VAE" not in reasons:
            vae = _tried(reasons, "VAE", lambda: _checked_vae(bundle, kernels))
    made = FastForwards(unet, vae, reasons)
    tiny = type(bundle.vae).__name__ == "AutoencoderTiny"
    odd = [name for name in reasons if not (name == "VAE" and tiny)]
    logger.log(logging.WARNING if odd else logging.INFO, "%s", made.in_words)
    return made


class _Differs(Exception):
    """A forward that does not compute what the modules do."""


def _tried(reasons: dict[str, str], name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # whatever Triton, a driver or a kernel makes of this device
        reasons[name] = (
            str(error) if isinstance(error, _Differs) else f"it failed: {_in_words(error)}"
        )
        return None


def _in_words(error: Exception) -> str:
    """What an error says, and what to install where Triton could not build what it launches by."""
    said = first_line(error)
    if isinstance(error, subprocess.CalledProcessError):  # a compiler's; its command is long
        said = f"{Path(error.cmd[0]).name} failed"
    elif "C compiler" not in said:
        return said
    return f"{said}; Triton needs a C compiler and Python's headers: install gcc and python3-dev"


@torch.inference_mode()
def predict_by_modules(bundle: ModelBundle) -> tuple[Trial, torch.Tensor]:
    """What a U-Net is tried with, two rows of 512 x 512 at different times, and what its modules
    predict."""
    side = 512 // bundle.downscale
    latents = _noise(bundle, 2, bundle.latent_channels, side, side)
    text = _noise(bundle, 2, bundle.text_length, bundle.text_width)
    steps = torch.tensor([20.0, 700.0], device=bundle.device)
    made = bundle.unet(latents, steps, encoder_hidden_states=text, return_dict=False)[0]
    return (latents, steps, text), made


@torch.inference_mode()
def _checked_unet(bundle: ModelBundle, kernels: Kernels, orders: Mapping[int, Order]) -> FastUNet:
    fast = FastUNet(bundle.unet, kernels, orders)
    trial, want = predict_by_modules(bundle)
    _compare(fast(*trial), want)
    return fast


@torch.inference_mode()
def _checked_vae(bundle: ModelBundle, kernels: Kernels) -> FastVae:
    """A picture of 256 x 256 in, its latents out again."""
    fast, vae = FastVae(bundle.vae, kernels), bundle.vae
    side = 256 // bundle.downscale
    got = _noise(bundle, 1, 3, 256, 256).clamp(-1, 1)
    want = vae.encoder(got)
    want = want if vae.quant_conv is None else vae.quant_conv(want)
    for step in fast.encoder:
        got = step.run(got, False)
    _compare(got, want)
    got = latents = _noise(bundle, 1, bundle.latent_channels, side, side)
    for step in fast.decoder:
        got = step.run(got, False)
    _compare(got, vae.decode(latents, return_dict=False)[0])
    return fast


def _noise(bundle: ModelBundle, *shape: int) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(bundle.device, bundle.dtype)


def _compare(got: torch.Tensor, want: torch.Tensor) -> None:
    """Raises _Differs where the relative error is over what the dtype allows."""
    error = ((got.float() - want.float()).norm() / want.float().norm()).item()
    # Written so that a NaN is an error too.
    if not error <= _TOLERANCE[want.dtype]:
        raise _Differs(f"it differs from its modules by {error:.1e} of its size")
