"""Forwards of our own against the modules, at full size on a card."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.bundle import ModelBundle
from tests.gpu.rig import Compilations, Rig, assert_near

SHAPES = ((2, 64, 64, False), (1, 40, 64, True), (3, 40, 88, False))
"""Rows, height and width of latents, circular padding."""


@pytest.fixture(autouse=True)
def full_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions in float32 to the last bit: a card otherwise takes 10 of its 23."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.inference_mode():
        yield


def inputs(
    bundle: ModelBundle, rows: int, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    latents = torch.randn(rows, 4, height, width, generator=generator)
    text = torch.randn(rows, bundle.text_length, bundle.text_width, generator=generator)
    times = torch.linspace(999, 20, rows)
    where = bundle.device, bundle.dtype
    return latents.to(*where), times.to(bundle.device), text.to(*where)


def unet_outputs(bundle: ModelBundle) -> list[torch.Tensor]:
    return [
        bundle.predict(*inputs(bundle, rows, height, width), circular).float().cpu()
        for rows, height, width, circular in SHAPES
    ]


def vae_outputs(rig: Rig, bundle: ModelBundle) -> list[torch.Tensor]:
    """An encode and a decode; of two pictures, of another shape."""
    fast = bundle.fast.vae if bundle.fast is not None else None
    made = []
    for pictures, height, width in ((1, rig.size, rig.size), (2, rig.size // 2, rig.size)):
        generator = torch.Generator().manual_seed(pictures)
        image = torch.rand(pictures, 3, height, width, generator=generator) * 2 - 1
        latents = torch.randn(pictures, 4, height // 8, width // 8, generator=generator)
        image, latents = (x.to(bundle.device, bundle.dtype) for x in (image, latents))
        if fast is None:
            encoded = bundle.vae.quant_conv(bundle.vae.encoder(image))
            decoded = bundle.vae.decode(latents, return_dict=False)[0]
        else:
            encoded, decoded = image, latents
            for step in fast.encoder:
                encoded = step.run(encoded, False)
            for step in fast.decoder:
                decoded = step.run(decoded, False)
        made += [encoded.float().cpu(), decoded.float().cpu()]
    return made


@pytest.fixture(scope="module")
def wanted(rig: Rig) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the modules make in float32, of the U-Net and of the VAE."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        bundle = rig.bundle(torch.float32)
        return unet_outputs(bundle), vae_outputs(rig, bundle)


def test_in_float32_they_are_the_modules(
    rig: Rig, wanted: tuple[list[torch.Tensor], list[torch.Tensor]]
) -> None:
    bundle = rig.fast(rig.bundle(torch.float32))
    for got, want in zip(unet_outputs(bundle), wanted[0], strict=True):
        assert_near(got, want, 1e-4)
    for got, want in zip(vae_outputs(rig, bundle), wanted[1], strict=True):
        assert_near(got, want, 1e-4)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)], ids=["fp16", "bf16"]
)
def test_in_half_precision_they_are_near_the_modules_in_float32(
    rig: Rig,
    wanted: tuple[list[torch.Tensor], list[torch.Tensor]],
    dtype: torch.dtype,
    most: float,
) -> None:
    if rig.narrow and dtype is torch.float16:
        pytest.skip("float16 is not for a CPU")
    bundle = rig.bundle(dtype)
    by_modules = vae_outputs(rig, bundle)
    rig.fast(bundle)
    for got, want in zip(unet_outputs(bundle), wanted[0], strict=True):
        assert_near(got, want, most * (4 if rig.narrow else 1))  # narrow norms are noisier
    for got, plain, want in zip(vae_outputs(rig, bundle), by_modules, wanted[1], strict=True):
        # No worse than the modules, whose own error in half precision may be the larger one.
        own = float((plain - want).norm() / want.norm())
        assert_near(got, want, max(most, 1.2 * own))


def test_a_new_size_compiles_no_kernel(rig: Rig) -> None:
    pytest.importorskip("triton")
    bundle = rig.fast(rig.bundle())
    bundle.predict(*inputs(bundle, 2, 64, 64), False)
    vae_outputs(rig, bundle)
    most = 1 if rig.narrow else 4
    with Compilations() as compiled:
        for rows, height, width in ((1, 64, 64), (3, 40, 88), (16, 48, 40), (7, 104, 56))[:most]:
            bundle.predict(*inputs(bundle, rows, height, width), False)
    assert compiled.kernels == []
