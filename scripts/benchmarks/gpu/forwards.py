"""The U-Net and the VAE alone: their modules against forwards of our own, in graphs, by kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.bundle import ModelBundle
from scripts.benchmarks.gpu.device import captured, half, median_ms
from scripts.benchmarks.gpu.fast import make_fast
from scripts.benchmarks.gpu.kernel_times import kernel_times
from scripts.benchmarks.gpu.ledger import Ledger
from scripts.benchmarks.gpu.model import RandomModel, make_parts
from scripts.benchmarks.gpu.plan import Scale

MODULES, FAST = "modules", "fast forwards"
Tensor = torch.Tensor


def unet_inputs(bundle: ModelBundle, scale: Scale, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (R, 4, h, w) latents, (R,) timesteps and (R, T, D) text, the same in every dtype."""
    generator = torch.Generator().manual_seed(rows)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(bundle.device, bundle.dtype)

    height, width = bundle.latent_size(scale.size, scale.size)
    latents = draw(rows, bundle.latent_channels, height, width)
    times = (torch.rand(rows, generator=generator) * 999).to(bundle.device)
    return latents, times, draw(rows, bundle.text_length, bundle.text_width)


def relative_error(got: Tensor, want: Tensor) -> float:
    """Return the norm of the difference as a share of what is wanted."""
    return float((got.float() - want.float()).norm() / want.float().norm())


@torch.inference_mode()
def measure_unet(model: RandomModel, scale: Scale, ledger: Ledger) -> None:
    """Milliseconds by rows, error against float32, kernels by kind: of the modules, of ours."""
    ledger.put(unet_flops(model.narrow, scale), "flops", "unet_row")
    exact = model.bundle(torch.float32)
    wanted = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for rows in scale.profiled:
            wanted[rows] = exact.predict(*unet_inputs(exact, scale, rows), False).cpu()
    del exact
    bundle = model.bundle(half())
    for variant in (MODULES, FAST):
        if variant == FAST:
            ledger.put(make_fast(bundle, scale), "unet", "forwards")
            if bundle.fast is None or bundle.fast.unet is None:
                return
        for rows in scale.rows:
            if not ledger.fits(4.0):
                return
            inputs = unet_inputs(bundle, scale, rows)

            def run(inputs: tuple[Tensor, Tensor, Tensor] = inputs) -> Tensor:
                return bundle.predict(*inputs, False)

            found: dict[str, Any] = {"ms": median_ms(captured(run), scale.rounds)}
            if rows in wanted:
                found["error"] = relative_error(run().cpu(), wanted[rows])
                found["kernels"] = kernel_times(run).as_json()
            ledger.put(found, "unet", variant, str(rows))


@torch.inference_mode()
def measure_vae(model: RandomModel, scale: Scale, ledger: Ledger) -> None:
    """Milliseconds of an encode and a decode, eager and captured, of one picture and of several."""
    for name, flops in vae_flops(model.narrow, scale).items():
        ledger.put(flops, "flops", name)
    exact = model.bundle(torch.float32)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wanted = {
            name: run(_vae_input(exact, name, scale, 1)).cpu()
            for name, run in _passes(exact).items()
        }
    del exact
    bundle = model.bundle(half())
    for variant in (MODULES, FAST):
        if variant == FAST:
            make_fast(bundle, scale)
            if bundle.fast is None or bundle.fast.vae is None:
                return
        for name, forward in _passes(bundle).items():
            for pictures in scale.pictures:
                if not ledger.fits(2.0):
                    return
                given = _vae_input(bundle, name, scale, pictures)

                def run(given: Tensor = given, forward: Any = forward) -> Tensor:
                    made: Tensor = forward(given)
                    return made

                found: dict[str, Any] = {"eager": median_ms(run, scale.rounds)}
                found["captured"] = median_ms(captured(run), scale.rounds)
                if pictures == 1:
                    found["error"] = relative_error(run().cpu(), wanted[name])
                    found["kernels"] = kernel_times(run).as_json()
                ledger.put(found, "vae", variant, f"{name} {pictures}")


def _passes(bundle: ModelBundle) -> dict[str, Callable[[Tensor], Tensor]]:
    """The encode and the decode as the engine runs them: by a fast forward where there is one."""
    if bundle.fast is not None and bundle.fast.vae is not None:
        steps = {"decode": bundle.fast.vae.decoder, "encode": bundle.fast.vae.encoder}

        def fast(name: str) -> Callable[[Tensor], Tensor]:
            def run(x: Tensor) -> Tensor:
                for step in steps[name]:
                    x = step.run(x, False)
                return x

            return run

        return {name: fast(name) for name in steps}
    vae = bundle.vae

    def decode(z: Tensor) -> Tensor:
        made: Tensor = vae.decode(z, return_dict=False)[0]
        return made

    return {"decode": decode, "encode": lambda x: vae.quant_conv(vae.encoder(x))}


def _vae_input(bundle: ModelBundle, name: str, scale: Scale, pictures: int) -> Tensor:
    height, width = bundle.latent_size(scale.size, scale.size)
    shape = (pictures, bundle.latent_channels, height, width)
    if name == "encode":
        shape = (pictures, 3, scale.size, scale.size)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(pictures))
    drawn = drawn.clamp(-1, 1) if name == "encode" else drawn
    return drawn.to(bundle.device, bundle.dtype)


@torch.inference_mode()
def unet_flops(narrow: bool, scale: Scale) -> int:
    """Return the arithmetic of one row, counted on tensors without memory."""
    with torch.device("meta"):
        unet = make_parts(narrow)["unet"]
        side = scale.size // 8
        latents = torch.empty(1, 4, side, side)
        text = torch.empty(1, 77, unet.config.cross_attention_dim)
        with FlopCounterMode(display=False) as counter:
            unet(latents, torch.empty(1), encoder_hidden_states=text)
    return int(counter.get_total_flops())


@torch.inference_mode()
def vae_flops(narrow: bool, scale: Scale) -> dict[str, int]:
    """Return the arithmetic of one decode and one encode, counted on tensors without memory."""
    counts = {}
    with torch.device("meta"):
        vae = make_parts(narrow)["vae"]
        side = scale.size // 8
        with FlopCounterMode(display=False) as counter:
            vae.decode(torch.empty(1, 4, side, side))
        counts["decode"] = int(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            vae.quant_conv(vae.encoder(torch.empty(1, 3, scale.size, scale.size)))
        counts["encode"] = int(counter.get_total_flops())
    return counts
