"""The Triton kernels by Triton's interpreter, against torch in float64."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.acceleration.torch_kernels import TorchKernels

triton = pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("a card runs the kernels themselves: tests/gpu", allow_module_level=True)
if not triton.knobs.runtime.interpret:
    pytest.skip("Triton was imported before TRITON_INTERPRET was set", allow_module_level=True)

from models.acceleration.triton_kernels import NEXT, PROVEN, Geometry, TritonKernels  # noqa: E402

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
GEOMETRIES = pytest.mark.parametrize("geometry", [PROVEN, NEXT], ids=["proven", "next"])
BOUND = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def no_grad() -> object:
    with torch.inference_mode():
        yield


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return drawn.contiguous(memory_format=layout)


def group_norm(
    channels: int, groups: int, dtype: torch.dtype = torch.float32
) -> torch.nn.GroupNorm:
    norm = torch.nn.GroupNorm(groups, channels)
    norm.weight.data, norm.bias.data = random(channels, seed=1), random(channels, seed=2)
    return norm.to(dtype)


def exact_group_norm(
    x: torch.Tensor, norm: torch.nn.GroupNorm, silu: bool, add: torch.Tensor | None = None
) -> torch.Tensor:
    v = x.double()
    v = v if add is None else v + add.double()[..., :, None, None]
    v = F.group_norm(v, norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
    return F.silu(v) if silu else v


def close(got: torch.Tensor, want: torch.Tensor, bound: float | None = None) -> None:
    bound = BOUND[got.dtype] if bound is None else bound
    assert got.shape == want.shape
    assert ((got.double() - want).abs() / (1 + want.abs())).max().item() <= bound


@GEOMETRIES
@pytest.mark.parametrize(
    ("rows", "channels", "height", "width"),
    [(1, 320, 7, 9), (2, 640, 5, 4), (1, 960, 3, 11), (1, 1280, 8, 8), (1, 2560, 3, 5)],
)
def test_group_norm_with_a_time_and_silu(
    geometry: Geometry, rows: int, channels: int, height: int, width: int
) -> None:
    norm, x = group_norm(channels, 32), random(rows, channels, height, width)
    # A slice of the product of all blocks' times: its rows lie apart.
    add = random(rows, 3 * channels, seed=3)[:, channels : 2 * channels]
    got = TritonKernels(geometry).group_norm(x, norm, silu=True, add=add)
    assert got.is_contiguous(memory_format=torch.channels_last)
    close(got, exact_group_norm(x, norm, True, add))


@GEOMETRIES
@pytest.mark.parametrize("size", [(8, 4, 20, 33), (24, 4, 30, 20)], ids=str)
def test_group_norm_of_a_vae_with_one_bias_for_all(
    geometry: Geometry, size: tuple[int, int, int, int]
) -> None:
    channels, groups, height, width = size
    norm, x, add = (
        group_norm(channels, groups),
        random(2, channels, height, width),
        random(channels),
    )
    close(
        TritonKernels(geometry).group_norm(x, norm, silu=False, add=add),
        exact_group_norm(x, norm, False, add),
    )


@GEOMETRIES
@pytest.mark.parametrize("pixels", [6, 24])
def test_statistics_do_not_cancel(geometry: Geometry, pixels: int) -> None:
    """A spread of one around means of thousands, another one for each channel."""
    norm = group_norm(64, 8)
    means = 4000 + 200 * random(1, 64, 1, 1, seed=5).sign()
    x = (random(1, 64, pixels, pixels) + means).contiguous(memory_format=torch.channels_last)
    same = (random(1, 64, pixels, pixels) + 4000).contiguous(memory_format=torch.channels_last)
    for values in (x, same):
        got = TritonKernels(geometry).group_norm(values, norm, silu=False)
        # float32 itself rounds 4000 to 2e-4.
        close(got, exact_group_norm(values, norm, False), 2e-3)


@pytest.mark.parametrize("channels", [(640, 320), (64, 32), (1280, 640)])
def test_a_skip_connection_is_normed_where_it_lies(channels: tuple[int, int]) -> None:
    """Groups of 30, 3 and 60 channels: one of each reads both tensors."""
    kernels, (first, second) = TritonKernels(NEXT), channels
    assert kernels.joins(first, second)
    assert not TritonKernels(PROVEN).joins(first, second)
    x, skip = random(1, first, 5, 3), random(1, second, 5, 3, seed=4)
    norm = group_norm(first + second, 32)
    got = kernels.group_norm(x, norm, silu=True, skip=skip)
    close(got, exact_group_norm(torch.cat([x, skip], 1), norm, True))


@GEOMETRIES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_each_dtype(geometry: Geometry, dtype: torch.dtype) -> None:
    kernels, reference = TritonKernels(geometry), TorchKernels()
    norm, x = group_norm(64, 16, dtype), random(1, 64, 6, 5, dtype=dtype)
    close(kernels.group_norm(x, norm, silu=True), exact_group_norm(x, norm, True))
    bias = random(64, dtype=dtype)
    close(kernels.bias_residual(x, bias, x), x.double() * 2 + bias.double()[:, None, None])
    tokens = random(1, 6, 64, dtype=dtype)
    layer = torch.nn.LayerNorm(64).to(dtype)
    got, want = (
        kernels.layer_norm(tokens, layer, tokens),
        reference.layer_norm(tokens.float(), torch.nn.LayerNorm(64), tokens.float()),
    )
    for mine, theirs in zip(got, want, strict=True):
        close(mine, theirs.double())
    close(kernels.geglu(tokens), reference.geglu(tokens.float()).double())


@GEOMETRIES
@pytest.mark.parametrize("channels", [320, 300, 1280])
def test_layer_norm_and_geglu(geometry: Geometry, channels: int) -> None:
    kernels = TritonKernels(geometry)
    x, residual = 50 + random(2, 5, channels), random(2, 5, channels, seed=1)
    norm = torch.nn.LayerNorm(channels)
    norm.weight.data, norm.bias.data = random(channels, seed=2), random(channels, seed=3)
    exact = x.double() + residual.double()
    sums, got = kernels.layer_norm(x, norm, residual)
    close(sums, exact)
    wanted = F.layer_norm(exact, (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    close(got, wanted, 1e-4)
    same, alone = kernels.layer_norm(x, norm)
    assert same is x
    weight, bias = norm.weight.double(), norm.bias.double()
    close(alone, F.layer_norm(x.double(), (channels,), weight, bias, norm.eps), 1e-4)
    values, gate = x.double().chunk(2, -1)
    close(kernels.geglu(x), values * F.gelu(gate))


@GEOMETRIES
def test_bias_and_residual(geometry: Geometry) -> None:
    kernels = TritonKernels(geometry)
    for channels in (320, 24):
        x, residual = random(2, channels, 5, 7), random(2, channels, 5, 7, seed=1)
        bias = random(channels, seed=2)
        exact = x.double() + bias.double()[:, None, None]
        close(kernels.bias_residual(x, bias), exact)
        close(kernels.bias_residual(x, bias, residual), exact + residual.double())


@pytest.mark.parametrize(("height", "width", "channels"), [(3, 5, 64), (4, 1, 20)])
def test_phases_are_interleaved(height: int, width: int, channels: int) -> None:
    phases = random(2, 4 * channels, height + 1, width + 1)
    bias = random(channels, seed=1)
    got = TritonKernels(NEXT).interleave(phases, bias)
    assert torch.equal(got, TorchKernels().interleave(phases, bias))


def compiled(*arguments: str) -> str:
    """What `scripts/compile_kernels` prints; it ends badly where a kernel spills."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = ROOT / "scripts/compile_kernels"
    done = subprocess.run(
        [sys.executable, script, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def check_code(printed: str, capabilities: int) -> None:
    lines = [line for line in printed.splitlines() if "registers" in line]
    assert lines
    assert all(" 0 spills" in line for line in lines)
    # What goes over pictures does so 16 bytes at a time, all but the odd group sizes.
    wide = [
        line
        for line in lines
        if re.search(r" (gn_partial|gn_apply\w*|bias_res\w*|geglu|interleave)\(", line)
    ]
    assert wide
    assert all(re.search(r"loads [^;]*of 16 B", line) for line in wide)
    assert printed.count("specialisations") == capabilities


@pytest.mark.slow("checkpoints")
def test_a_few_kernels_compile_without_a_card() -> None:
    check_code(compiled("--few", "90"), 1)


@pytest.mark.slow("checkpoints")
def test_every_specialisation_compiles_for_four_cards() -> None:
    printed = compiled("80", "86", "89", "90")
    print(printed)
    check_code(printed, 4)
