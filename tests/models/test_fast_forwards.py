"""Forwards of our own against diffusers' modules, whole and narrow, by the reference kernels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.convert_from_ckpt import create_unet_diffusers_config
from safetensors.torch import save_file

from models.acceleration.fast_forwards import make_forwards
from models.acceleration.layers import phases_of
from models.acceleration.quantization import QuantizedLinear
from models.acceleration.torch_kernels import Kernels, TorchKernels
from models.acceleration.unet import FastUNet, unsupported_reason
from models.acceleration.vae import FastVae
from models.bundle import FastForwards, ModelBundle
from models.loading.parts import read_config
from models.padding import circular_padding
from tests.models.narrow import TEXT_WIDTH
from tests.models.test_lora import kohya
from tests.models.test_lora import load as load_lora

pytestmark = pytest.mark.process

WAYS = pytest.mark.parametrize("folds", [False, True], ids=["as proven", "as next"])
CIRCULAR = pytest.mark.parametrize("circular", [False, True], ids=["zeros", "circular"])


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that are not those of a fresh layer: no norm of ones, no bias of zeros."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


@pytest.fixture
def unet(narrow: Path) -> UNet2DConditionModel:
    config = UNet2DConditionModel.load_config(narrow / "unet")
    torch.manual_seed(0)
    return shaken(UNet2DConditionModel.from_config(config))


@pytest.fixture
def vae(narrow: Path) -> AutoencoderKL:
    torch.manual_seed(0)
    return shaken(AutoencoderKL.from_config(AutoencoderKL.load_config(narrow / "vae")))


def unet_inputs(
    height: int, width: int, rows: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(rows, 4, height, width, generator=generator)
    text = torch.randn(rows, 77, TEXT_WIDTH, generator=generator)
    return latents, torch.rand(rows, generator=generator) * 999, text


def by_modules(unet: Any, inputs: tuple[torch.Tensor, ...], circular: bool) -> torch.Tensor:
    latents, steps, text = inputs
    with circular_padding(circular, unet):
        made: torch.Tensor = unet(latents, steps, encoder_hidden_states=text, return_dict=False)[0]
    return made


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@WAYS
@CIRCULAR
@pytest.mark.parametrize("size", [(16, 24), (9, 13)], ids=str)
def test_the_unet_predicts_what_its_modules_do(
    unet: UNet2DConditionModel, folds: bool, circular: bool, size: tuple[int, int]
) -> None:
    inputs = unet_inputs(*size)
    want = by_modules(unet, inputs, circular)
    assert unsupported_reason(unet) is None
    fast = FastUNet(unet, TorchKernels(folds), {})
    assert difference(fast(*inputs, circular=circular), want) < 1e-5
    # The modules go on to work, over the same weights in their new places.
    assert difference(by_modules(unet, inputs, circular), want) < 1e-5


@WAYS
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_in_half_precision_it_is_as_far_from_the_truth_as_the_modules(
    unet: UNet2DConditionModel, folds: bool, dtype: torch.dtype, bound: float
) -> None:
    inputs = unet_inputs(8, 16, rows=2)
    truth = by_modules(unet, inputs, False)
    unet.to(dtype)
    halves = (inputs[0].to(dtype), inputs[1], inputs[2].to(dtype))
    modules = difference(by_modules(unet, halves, False), truth)
    ours = difference(FastUNet(unet, TorchKernels(folds), {})(*halves), truth)
    assert ours < bound
    assert ours < 1.5 * modules


def test_no_weight_of_the_unet_is_there_twice(unet: UNet2DConditionModel) -> None:
    before = sum(p.nbytes for p in unet.parameters())
    fast = FastUNet(unet, TorchKernels(), {})
    after = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in unet.parameters()
    }
    assert sum(after.values()) == before
    for mine in (fast._time_weight, fast._text_weight):
        assert mine.untyped_storage().data_ptr() in after


def test_loras_that_were_fused_before_are_in_it(
    tiny_folder: Path, tiny: ModelBundle, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(kohya(2.0), path)
    with torch.inference_mode(False):
        own = load_lora(tiny_folder, (str(path), 1.0))
    inputs = unet_inputs(8, 8)
    want = by_modules(own.unet, inputs, False)
    assert difference(want, by_modules(tiny.unet, inputs, False)) > 1e-3
    assert difference(FastUNet(own.unet, TorchKernels(True), {})(*inputs), want) < 1e-5


@pytest.mark.parametrize("height", [3, 4])
def test_folded_upsampling_is_the_convolution_of_the_larger_picture(height: int) -> None:
    weight, x = torch.randn(5, 3, 3, 3), torch.randn(2, 3, height, 5)
    want = torch.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, padding=1)
    got = TorchKernels().interleave(torch.conv2d(x, phases_of(weight), padding=1), torch.zeros(5))
    assert difference(got, want) < 1e-6


ODD: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "use_linear_projection": lambda c: c | {"use_linear_projection": True},
    "resnet_time_scale_shift": lambda c: c | {"resnet_time_scale_shift": "scale_shift"},
    "act_fn": lambda c: c | {"act_fn": "gelu"},
    "class_embed_type": lambda c: c | {"class_embed_type": "timestep"},
    "only_cross_attention": lambda c: c | {"only_cross_attention": True},
    "a ResnetDownsampleBlock2D": lambda c: (
        c | {"down_block_types": [*c["down_block_types"][:-1], "ResnetDownsampleBlock2D"]}
    ),
    "resnet_out_scale_factor": lambda c: c | {"resnet_out_scale_factor": 1.4},
    "conv_in_kernel": lambda c: c | {"conv_in_kernel": 1},
}


@pytest.mark.parametrize("what", list(ODD))
def test_another_unet_than_1x_is_refused(narrow: Path, what: str) -> None:
    config = dict(UNet2DConditionModel.load_config(narrow / "unet"))
    with torch.device("meta"):
        odd = UNet2DConditionModel.from_config(ODD[what](config))
    reason = unsupported_reason(odd)
    assert reason is not None
    assert what in reason
    with pytest.raises(ValueError, match=what):
        FastUNet(odd, TorchKernels(), {})


LDM_1X = {
    "unet_config": {"params": {
        "in_channels": 4, "out_channels": 4, "model_channels": 16, "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 4, 4], "num_heads": 2,
        "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": TEXT_WIDTH,
        "legacy": False,
    }},
    "first_stage_config": {"params": {"ddconfig": {"ch_mult": [1, 2, 4, 4]}}},
}  # fmt: skip
"""What A1111's v1-inference.yaml says of the U-Net, of fewer channels."""


def test_a_unet_that_diffusers_own_converter_configured(tmp_path: Path) -> None:
    config = create_unet_diffusers_config({"model": {"params": LDM_1X}}, image_size=512)
    # Not said at its command line.
    config |= {"upcast_attention": None, "norm_num_groups": 8}
    UNet2DConditionModel(**config).save_config(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["upcast_attention"] is None
    converted = shaken(UNet2DConditionModel.from_config(read_config(tmp_path)))
    inputs = unet_inputs(8, 8)
    want = by_modules(converted, inputs, False)
    assert unsupported_reason(converted) is None
    assert difference(FastUNet(converted, TorchKernels(), {})(*inputs), want) < 1e-5


TRUTHS = [
    "center_input_sample",
    "dual_cross_attention",
    "resnet_skip_time_act",
    "upcast_attention",
    "use_linear_projection",
]


def test_null_is_false_in_every_key_that_is_to_be_false(narrow: Path) -> None:
    config = dict(UNet2DConditionModel.load_config(narrow / "unet"))
    plain, null = (
        shaken(UNet2DConditionModel.from_config(config | dict.fromkeys(TRUTHS, value)))
        for value in (False, None)
    )
    null.load_state_dict(plain.state_dict())
    inputs = unet_inputs(8, 8)
    assert torch.equal(by_modules(null, inputs, False), by_modules(plain, inputs, False))
    assert unsupported_reason(null) is None


def test_layers_that_compute_something_else_are_refused(unet: UNet2DConditionModel) -> None:
    hooked, quantised, mixed, scaled = (deepcopy(unet) for _ in range(4))
    hooked.mid_block.resnets[0].conv1.register_forward_hook(lambda *_: None)
    assert "hook" in (unsupported_reason(hooked) or "")
    layer = quantised.mid_block.attentions[0].transformer_blocks[0].ff
    layer.net[2] = QuantizedLinear.of(layer.net[2])
    assert unsupported_reason(quantised) == "it has a QuantizedLinear"
    mixed.conv_out.half()
    assert "more than one dtype" in (unsupported_reason(mixed) or "")
    scaled.mid_block.attentions[0].transformer_blocks[0].attn1.scale = 1.0
    assert "scale" in (unsupported_reason(scaled) or "")


def vae_inputs(vae: AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return (
        torch.rand(2, 3, 48, 64, generator=generator).to(vae.dtype) * 2 - 1,
        torch.randn(2, 4, 6, 8, generator=generator).to(vae.dtype),
    )


def encoded_and_decoded(fast: FastVae, vae: AutoencoderKL, circular: bool) -> list[torch.Tensor]:
    made = []
    for x, steps in zip(vae_inputs(vae), (fast.encoder, fast.decoder), strict=True):
        for step in steps:
            x = step.run(x, circular)
        made.append(x)
    return made


def modules_of_vae(vae: AutoencoderKL, circular: bool) -> list[torch.Tensor]:
    pictures, latents = vae_inputs(vae)
    with circular_padding(circular, vae):
        return [vae.encode(pictures).latent_dist.parameters, vae.decode(latents).sample]


@WAYS
@CIRCULAR
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)],
    ids=str,
)
def test_the_vae_does_what_its_modules_do(
    vae: AutoencoderKL, folds: bool, circular: bool, dtype: torch.dtype, bound: float
) -> None:
    vae.to(dtype)
    want = modules_of_vae(vae, circular)
    got = encoded_and_decoded(FastVae(vae, TorchKernels(folds)), vae, circular)
    assert [difference(g, w) < bound for g, w in zip(got, want, strict=True)] == [True, True]


def test_a_vae_without_its_outer_convolutions_or_its_attention(vae: AutoencoderKL) -> None:
    config = dict(vae.config) | {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
    }
    bare = shaken(AutoencoderKL.from_config(config))
    want = modules_of_vae(bare, False)
    got = encoded_and_decoded(FastVae(bare, TorchKernels()), bare, False)
    assert [difference(g, w) < 1e-5 for g, w in zip(got, want, strict=True)] == [True, True]


def made(bundle: ModelBundle, kernels: Kernels) -> FastForwards:
    return make_forwards(bundle, {}, make_kernels=lambda _: kernels)


@WAYS
def test_what_holds_against_the_modules_is_used(
    tiny: ModelBundle, folds: bool, caplog: pytest.LogCaptureFixture
) -> None:
    own = replace(tiny, unet=deepcopy(tiny.unet))
    inputs = unet_inputs(8, 8)
    want = own.predict(*inputs, True)
    own.fast = made(own, TorchKernels(folds))
    assert own.fast.in_words == "U-Net and VAE by kernels of our own"
    assert difference(own.predict(*inputs, True), want) < 1e-5
    assert caplog.records == []


class Wrong(TorchKernels):
    """Kernels with a fault: residuals are left out, or norms give NaN, or fail."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault = fault

    def group_norm(self, x: torch.Tensor, norm: torch.nn.GroupNorm, **options: Any) -> torch.Tensor:
        if self._fault == "fails":
            raise RuntimeError("no kernel image is available\nfor this card")
        normed = super().group_norm(x, norm, **options)
        return normed * float("nan") if self._fault == "gives NaN" else normed * 1.02


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("is off", "differs from its modules by"),
        ("gives NaN", "differs from its modules by nan"),
        ("fails", "it failed: no kernel image is available)"),
    ],
)
def test_what_does_not_hold_leaves_the_modules_and_is_said_once(
    tiny: ModelBundle, caplog: pytest.LogCaptureFixture, fault: str, said: str
) -> None:
    own = replace(tiny, unet=deepcopy(tiny.unet))
    inputs = unet_inputs(8, 8)
    want = own.predict(*inputs, False)
    own.fast = made(own, Wrong(fault))
    assert own.fast.unet is own.fast.vae is None
    assert said in own.fast.in_words
    assert [record.getMessage() for record in caplog.records] == [own.fast.in_words]
    assert difference(own.predict(*inputs, False), want) < 1e-5


@pytest.mark.parametrize(
    ("compiler", "said"), [(None, "Failed to find C compiler"), ("false", "false failed")]
)
def test_a_machine_that_cannot_build_for_triton_is_told_what_to_install(
    tiny: ModelBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str | None,
    said: str,
) -> None:
    """By Triton's own build, which it does at its first launch on a card."""
    build = pytest.importorskip("triton.runtime.build")

    class Building(TorchKernels):
        def group_norm(self, *_: Any, **__: Any) -> torch.Tensor:
            build.compile_module_from_src("int x;", "probe")
            raise AssertionError("it was built")

    if compiler is None:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if hasattr(build, "_find_compiler"):
        build._find_compiler.cache_clear()
    own = replace(tiny, unet=deepcopy(tiny.unet))
    words = made(own, Building()).in_words
    assert said in words
    assert words.count("install gcc and python3-dev") == 2  # of the U-Net and of the VAE
    assert str(tmp_path) not in words


def test_a_tiny_autoencoder_runs_as_its_module_and_is_no_warning(
    tiny: ModelBundle, caplog: pytest.LogCaptureFixture
) -> None:
    own = replace(tiny, unet=deepcopy(tiny.unet), vae=AutoencoderTiny())
    forwards = made(own, TorchKernels())
    assert forwards.unet is not None
    assert forwards.vae is None
    assert "VAE by its modules (it is an AutoencoderTiny)" in forwards.in_words
    assert caplog.records == []


@pytest.mark.slow("checkpoints")
@pytest.mark.parametrize("choice", ["proven", "next"])
def test_the_triton_kernels_in_a_whole_forward(tiny: ModelBundle, choice: str) -> None:
    """By the interpreter: layouts, strides and views as the forwards hand them over."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("a card runs the kernels themselves: tests/gpu")
    from models.acceleration.fast_forwards import triton_kernels

    kernels = triton_kernels("next" if choice == "next" else "proven")
    unet, vae = deepcopy(tiny.unet), tiny.vae
    inputs = unet_inputs(4, 6, rows=1)
    want = by_modules(unet, inputs, True)
    assert difference(FastUNet(unet, kernels, {})(*inputs, circular=True), want) < 1e-5
    x = torch.randn(1, 4, 3, 2, generator=torch.Generator().manual_seed(6))
    want = vae.decode(x, return_dict=False)[0]
    for step in FastVae(vae, kernels).decoder:
        x = step.run(x, False)
    assert difference(x, want) < 1e-5
