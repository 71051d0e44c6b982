"""The fast forwards of a bundle, as a start makes them; on a CPU with kernels in torch."""

from __future__ import annotations

from models.acceleration.fast_forwards import FACT, make_forwards
from models.acceleration.modes import accelerate, choose_acceleration
from models.acceleration.torch_kernels import TorchKernels
from models.bundle import ModelBundle
from models.spec import AccelerationMode
from scripts.benchmarks.gpu.device import device
from scripts.benchmarks.gpu.plan import Scale


def make_fast(bundle: ModelBundle, scale: Scale) -> str:
    """Have a bundle's parts run through forwards of our own; say in words which of them do."""
    if device().type == "cuda":
        chosen = choose_acceleration(AccelerationMode.GRAPHS, bundle.device)
        latent = bundle.latent_size(scale.size, scale.size)
        accelerate(bundle, chosen, [latent], scale.rows)
    else:
        bundle.fast = make_forwards(bundle, {}, make_kernels=lambda _: TorchKernels())
        bundle.facts[FACT] = f"{bundle.fast.in_words}, in torch"
    return "; ".join(
        f"{name}: {bundle.facts[name]}"
        for name in (FACT, "attention kernels")
        if name in bundle.facts
    )
