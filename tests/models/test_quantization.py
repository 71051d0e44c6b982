"""Quantised linear layers: what they compute, which they are, and where there can be none."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.acceleration import quantization
from models.acceleration.attention import fuse_projections
from models.acceleration.quantization import (
    QuantizedLinear,
    check_quantization,
    quantizable,
)
from models.bundle import ModelBundle, stored_bytes
from models.loading.loader import EMBEDDED, ModelLoadError, ModelSpec, load_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def loaded(folder: Path, **changes: object) -> ModelBundle:
    spec = ModelSpec(str(folder), **changes)  # type: ignore[arg-type]
    return load_model(spec, device="cpu", dtype="float32")


def predict(bundle: ModelBundle, latents: torch.Tensor) -> torch.Tensor:
    """The U-Net's output for (R, 4, h, w) latents."""
    rows = len(latents)
    generator = torch.Generator().manual_seed(2)
    text = torch.randn(rows, 77, bundle.text_width, generator=generator)
    timestep = torch.full((rows,), 500.0)
    out: torch.Tensor = bundle.unet(latents, timestep, encoder_hidden_states=text).sample
    return out


def test_the_layers_are_the_wide_ones_that_read_the_picture(tiny_folder: Path) -> None:
    unet = loaded(tiny_folder).unet
    fuse_projections(unet)
    names = set(quantizable(unet))
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert {f"{block}.attn1.to_qkv", f"{block}.attn2.to_q", f"{block}.ff.net.0.proj"} <= names
    assert all(".transformer_blocks." in name for name in names)
    assert not any("attn2.to_kv" in name for name in names)


@pytest.mark.parametrize(
    ("sides", "taken"), [((64, 64), True), ((48, 64), False), ((64, 48), False), ((72, 64), False)]
)
def test_narrow_layers_and_odd_sides_are_left(sides: tuple[int, int], taken: bool) -> None:
    unet = torch.nn.ModuleDict(
        {"transformer_blocks": torch.nn.ModuleList([torch.nn.Linear(*sides)])}
    )
    assert bool(quantizable(unet)) is taken


def test_without_torchao_the_command_is_named(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModelLoadError, match=r"IMG2IMG_QUANTIZE=int8 .* pip install torchao==0"):
        loaded(tiny_folder, quantize="int8")


def test_what_is_not_asked_for_is_not_needed(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    assert "quantized" not in loaded(tiny_folder).facts


def test_fp8_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"IMG2IMG_QUANTIZE=fp8 .* 8\.9 or higher, not cpu"):
        loaded(tmp_path / "nothing", quantize="fp8")


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((8, 6), torch.bfloat16, r"IMG2IMG_QUANTIZE=fp8 .* 8\.9 or higher; cuda has 8\.6"),
        ((9, 0), torch.float16, r"IMG2IMG_QUANTIZE=fp8 needs IMG2IMG_DTYPE=bfloat16, not float16"),
    ],
)
def test_what_fp8_needs(
    capability: tuple[int, int],
    dtype: torch.dtype,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantization, "_capability", lambda device: capability)
    with pytest.raises(ModelLoadError, match=reason):
        check_quantization("fp8", CUDA, dtype)


def test_the_extra_and_the_message_name_one_version() -> None:
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    assert f'quantize = ["{quantization.TORCHAO}"]' in pyproject.read_text(encoding="utf-8")


def test_the_bytes_of_a_plain_parameter() -> None:
    assert stored_bytes(torch.zeros(3, 5)) == 60


# With torchao


@pytest.fixture(scope="module")
def torchao() -> None:
    pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def int8(torchao: None, tiny_folder: Path) -> ModelBundle:
    return loaded(tiny_folder, quantize="int8")


def test_the_u_net_stays_close_and_gets_smaller(int8: ModelBundle, tiny: ModelBundle) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, exact = predict(int8, latents), predict(tiny, latents)
    error = float((ours - exact).norm() / exact.norm())
    assert 0 < error < 0.02
    assert int8.weight_bytes < tiny.weight_bytes
    count = sum(isinstance(m, QuantizedLinear) for m in int8.unet.modules())
    assert count == len(quantizable(int8.unet)) > 0
    assert int8.facts["quantized"].startswith(f"int8, {count} of ")


def test_a_quantised_layer_holds_a_byte_a_weight_and_scales(int8: ModelBundle) -> None:
    layer = next(m for m in int8.unet.modules() if isinstance(m, QuantizedLinear))
    rows, columns = layer.weight.shape
    assert rows * columns <= stored_bytes(layer.weight) <= rows * columns + 8 * rows


def test_rows_do_not_reach_each_other(int8: ModelBundle) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    loud, broken = latents.clone(), latents.clone()
    loud[1] *= 1000
    broken[1] = torch.nan
    with torch.inference_mode():
        first = predict(int8, latents)[0]
        assert torch.equal(predict(int8, loud)[0], first)
        assert torch.equal(predict(int8, broken)[0], first)
        assert not torch.isfinite(predict(int8, broken)[1]).all()


def test_gradients_go_through(int8: ModelBundle, tiny: ModelBundle) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    gradients = []
    for bundle in (int8, tiny):
        wanted = latents.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(predict(bundle, wanted).square().sum(), wanted)
        gradients.append(gradient.flatten())
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.999


def test_loras_are_in_what_is_quantised(torchao: None, tiny_folder: Path, tmp_path: Path) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(3)
    file = tmp_path / "lora.safetensors"
    factors = {"lora_A": (4, 64), "lora_B": (64, 4)}
    save_file(
        {
            f"unet.{layer}.{side}.weight": torch.randn(shape, generator=generator)
            for side, shape in factors.items()
        },
        file,
    )
    changed = loaded(tiny_folder, loras=((str(file), 1.0),)).unet.get_submodule(layer).weight
    both = loaded(tiny_folder, loras=((str(file), 1.0),), quantize="int8")
    weight = both.unet.get_submodule(f"{layer}kv").weight.dequantize()[: len(changed)]
    # A step of a row's scale is a 127th of its largest value; rounding is off by half of one.
    steps = changed.abs().amax(dim=1, keepdim=True) / 127
    assert ((weight - changed).abs() <= 0.51 * steps).all()


def test_a_model_without_a_layer_to_quantise_is_an_error(torchao: None) -> None:
    with pytest.raises(ModelLoadError, match="at least 64 wide"):
        quantization.quantize_unet(torch.nn.Sequential(torch.nn.Linear(8, 8)), "int8", CPU)


def test_the_embedded_model_has_layers_to_quantise(torchao: None) -> None:
    bundle = load_model(ModelSpec(EMBEDDED, quantize="int8"), device="cpu", dtype="bfloat16")
    latents = torch.randn(2, 4, 8, 8, dtype=torch.bfloat16)
    text = torch.randn(2, 77, bundle.text_width, dtype=torch.bfloat16)
    with torch.inference_mode():
        out = bundle.unet(latents, torch.full((2,), 500.0), encoder_hidden_states=text).sample
    assert out.dtype is torch.bfloat16
    assert torch.isfinite(out).all()


def test_torch_compile_takes_it_whole(int8: ModelBundle) -> None:
    layer = copy.deepcopy(next(m for m in int8.unet.modules() if isinstance(m, QuantizedLinear)))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    tokens = torch.randn(32, layer.in_features)
    with torch.inference_mode():
        expected = layer(tokens)
        # Traced, the integers are multiplied in float32; both are exact.
        assert torch.allclose(compiled(tokens), expected, atol=1e-5)


def test_what_accelerates_afterwards_leaves_it(int8: ModelBundle) -> None:
    unet = copy.deepcopy(int8.unet)
    before = {name for name, m in unet.named_modules() if isinstance(m, QuantizedLinear)}
    fuse_projections(unet)
    assert {name for name, m in unet.named_modules() if isinstance(m, QuantizedLinear)} == before
