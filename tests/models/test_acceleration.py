"""What a device can do is decided and said; fused and compiled parts compute the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

from models.acceleration import attention
from models.acceleration import modes as module
from models.acceleration.attention import (
    HOPPER_ORDER,
    attention_shapes,
    choose_kernels,
    fuse_projections,
    kernel_orders,
)
from models.acceleration.compiled import CompileCache, compile_parts
from models.acceleration.fast_forwards import make_forwards
from models.acceleration.modes import (
    Acceleration,
    accelerate,
    choose_acceleration,
    describe_forwards,
)
from models.acceleration.torch_kernels import TorchKernels
from models.bundle import ModelBundle
from models.spec import AccelerationMode

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def own(tiny: ModelBundle) -> ModelBundle:
    """A copy of the tiny model that a test may change."""
    return replace(tiny, unet=deepcopy(tiny.unet), facts={})


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def inputs(width: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(rows, 4, 8, 8, generator=generator)
    text = torch.randn(rows, 77, width, generator=generator)
    return latents, torch.full((rows,), 500.0), text


def predicted(unet: torch.nn.Module, width: int, rows: int = 2) -> torch.Tensor:
    latents, steps, text = inputs(width, rows)
    with torch.inference_mode():
        out: torch.Tensor = unet(latents, steps, encoder_hidden_states=text, return_dict=False)[0]
    return out


@pytest.mark.parametrize(
    ("asked", "device", "graphs", "compiles", "said"),
    [
        ("off", CUDA, False, False, "off"),
        ("graphs", CUDA, True, False, "CUDA graphs"),
        ("compile", CUDA, True, True, "CUDA graphs, compiled"),
        ("max", CUDA, True, True, "CUDA graphs, compiled, autotuned"),
        ("off", CPU, False, False, "off"),
        ("graphs", CPU, False, False, "off (there are no CUDA graphs on cpu)"),
        ("compile", CPU, False, True, "compiled (there are no CUDA graphs on cpu)"),
    ],
)
def test_what_a_device_cannot_do_is_left_out_and_said(
    asked: str, device: torch.device, graphs: bool, compiles: bool, said: str
) -> None:
    chosen = choose_acceleration(AccelerationMode(asked), device)
    assert (chosen.graphs, chosen.compiles) == (graphs, compiles)
    assert chosen.in_words == said


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    chosen = choose_acceleration(AccelerationMode.MAX, CUDA)
    assert not chosen.compiles
    assert not chosen.autotunes
    assert "install g++" in chosen.in_words


def test_fused_projections_predict_the_same_from_no_more_weights(own: ModelBundle) -> None:
    want, bytes_before = predicted(own.unet, own.text_width), own.weight_bytes
    fuse_projections(own.unet)
    fuse_projections(own.unet)  # a second time changes nothing
    got = predicted(own.unet, own.text_width)
    assert own.weight_bytes == bytes_before
    assert (got - want).abs().max() / want.abs().max() < 1e-5


def test_each_head_size_gets_an_order_of_kernels(own: ModelBundle) -> None:
    want = predicted(own.unet, own.text_width)
    shapes = attention_shapes(own, 8, 8)
    assert shapes == {4: (8, 64), 8: (8, 16)}
    assert kernel_orders(shapes, CPU, torch.float32, 16) == {}  # torch chooses there
    fuse_projections(own.unet)
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        order = (kernel, SDPBackend.MATH)
        choose_kernels(own.unet, dict.fromkeys(shapes, order))
        chosen = [p.order for p in own.unet.attn_processors.values()]
        assert chosen == [order] * len(chosen)
        got = predicted(own.unet, own.text_width)
        assert (got - want).abs().max() / want.abs().max() < 1e-5


def test_on_hopper_the_order_is_known_and_elsewhere_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    efficient = SDPBackend.EFFICIENT_ATTENTION
    shapes = {40: (8, 4096), 80: (8, 1024)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(attention, "_views", lambda size, *_: size)
    monkeypatch.setattr(attention, "_runs", lambda *_: True)
    assert kernel_orders(shapes, CUDA, torch.float16, 16) == dict.fromkeys(shapes, HOPPER_ORDER)
    assert HOPPER_ORDER[:3] == (cudnn, flash, efficient)
    assert kernel_orders(shapes, CUDA, torch.float16, 2, fixed=True) == dict.fromkeys(
        shapes, HOPPER_ORDER
    )
    asked = []

    def seconds(kernel: SDPBackend, size: int, heads: int, tokens: int, rows: int) -> float | None:
        asked.append((size, heads, tokens, rows))
        # One is three hundredths faster, which is no reason; one does not run; one is far faster.
        times = {40: {flash: 1.0, cudnn: 0.97}, 80: {flash: 1.0, cudnn: 0.9, efficient: 0.2}}
        return times[size].get(kernel)

    measured = kernel_orders(shapes, CUDA, torch.float16, 16, seconds)
    assert measured[40] == (flash, SDPBackend.MATH)
    assert measured[80] == (efficient, SDPBackend.MATH)
    assert set(asked) == {(40, 8, 4096, 16), (80, 8, 1024, 16)}


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    ("fails", "order"),
    [
        ((), HOPPER_ORDER),
        ((SDPBackend.CUDNN_ATTENTION,), HOPPER_ORDER[1:]),
        (HOPPER_ORDER, (SDPBackend.MATH,)),
    ],
)
def test_a_known_order_goes_by_no_stopwatch_and_has_what_runs(
    monkeypatch: pytest.MonkeyPatch,
    fails: tuple[SDPBackend, ...],
    order: tuple[SDPBackend, ...],
    fixed: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9) if fixed else (9, 0))
    monkeypatch.setattr(attention, "_views", lambda size, *_: size)
    monkeypatch.setattr(attention, "_runs", lambda kernel, size: size != 40 or kernel not in fails)
    orders = kernel_orders({40: (8, 4096), 80: (8, 1024)}, CUDA, torch.float16, 2, fixed=fixed)
    assert orders == {40: order, 80: HOPPER_ORDER}


@pytest.mark.parametrize(
    ("runs", "order", "timed"),
    [
        # As on cards before compute capability 8.0, and where nothing but the last resort runs.
        ({SDPBackend.EFFICIENT_ATTENTION}, [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], 0),
        (set(), [SDPBackend.MATH], 0),
        (
            {SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION},
            [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
            2,
        ),
    ],
)
def test_only_kernels_that_run_are_timed_and_not_one_alone(
    monkeypatch: pytest.MonkeyPatch, runs: set[SDPBackend], order: list[SDPBackend], timed: int
) -> None:
    events: list[Event] = []

    def event(enable_timing: bool) -> Event:
        events.append(Event(enable_timing))
        return events[-1]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(attention, "_views", lambda size, *_: (torch.zeros(1, 1, 4, size),) * 3)
    monkeypatch.setattr(attention, "_runs", lambda kernel, _: kernel in runs)
    monkeypatch.setattr(attention, "attend", lambda *_: None)
    assert kernel_orders({40: (8, 4)}, CUDA, torch.float16, 16) == {40: tuple(order)}
    assert len(events) == timed * 2 * attention._RUNS


@pytest.mark.parametrize("runs_short", ["its views", "a kernel"])
@pytest.mark.parametrize("fixed", [False, True])
def test_where_a_try_has_too_little_memory_torch_chooses_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fixed: bool, runs_short: str
) -> None:
    def views(size: int, *_: object) -> attention.Views:
        if size == 40 and runs_short == "its views":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (torch.zeros(1, 1, 4, size),) * 3

    def attend(query: torch.Tensor, *_: object) -> torch.Tensor:
        if query.shape[-1] == 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return query

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(attention, "_views", views)
    monkeypatch.setattr(attention, "attend", attend)
    orders = kernel_orders({40: (8, 4096), 80: (8, 1024)}, CUDA, torch.float16, 16, fixed=fixed)
    assert orders.keys() == {80}
    assert [record.getMessage() for record in caplog.records] == [
        "torch chooses the kernels of attention of 40 channels: there is too little memory to try "
        "them with 16 rows"
    ]


class Event:
    """Stands in for a card's event."""

    def __init__(self, enable_timing: bool) -> None: ...

    def record(self, _: object) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _: object) -> float:
        return 1.0


@pytest.mark.parametrize("mode", list(AccelerationMode))
def test_forwards_of_our_own_are_for_graphs_alone(mode: AccelerationMode) -> None:
    assert choose_acceleration(mode, CUDA).forwards == (mode is AccelerationMode.GRAPHS)
    assert not choose_acceleration(mode, CPU).forwards


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("off", "its modules (IMG2IMG_ACCELERATION=off)"),
        ("graphs", "its modules (kernels of our own need CUDA, not cpu)"),
        ("compile", "its modules (IMG2IMG_ACCELERATION=compile)"),
    ],
)
def test_the_doctor_says_what_the_parts_run_through(own: ModelBundle, mode: str, said: str) -> None:
    chosen = choose_acceleration(AccelerationMode(mode), CPU)
    assert describe_forwards(own, chosen) == said


def test_without_triton_the_modules_stay_and_the_log_says_so_once(
    own: ModelBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "models.acceleration.triton_kernels", None)
    want = predicted(own.unet, own.text_width)
    graphs = Acceleration(AccelerationMode.GRAPHS, graphs=True)
    accelerate(own, graphs, [(8, 8)], [2])
    assert own.fast is not None
    assert own.fast.unet is own.fast.vae is None
    assert "Triton cannot be used" in own.facts["forwards"]
    assert sum("Triton" in record.getMessage() for record in caplog.records) == 1
    got = own.predict(*inputs(own.text_width), False)
    assert (got - want).abs().max() / want.abs().max() < 1e-5


@pytest.mark.parametrize("mode", [AccelerationMode.GRAPHS, AccelerationMode.MAX])
def test_modules_that_fail_by_a_chosen_kernel_are_left_torchs_choice(
    own: ModelBundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: AccelerationMode,
) -> None:
    """cuDNN on a CPU fails as it does on a card without a plan: when it runs."""
    want = predicted(own.unet, own.text_width)
    order = (SDPBackend.CUDNN_ATTENTION,)
    forwards = partial(make_forwards, make_kernels=lambda _: TorchKernels())
    monkeypatch.setattr(module, "make_forwards", forwards)
    monkeypatch.setattr(module, "kernel_orders", lambda *_, **__: {4: order, 8: order})
    accelerate(own, Acceleration(mode, graphs=True), [(8, 8)], [2])
    if mode is AccelerationMode.GRAPHS:
        assert "U-Net by its modules (it failed: " in own.facts["forwards"]
    assert own.facts["attention kernels"].startswith("torch's choice (")
    assert sum("by torch's choice of kernels" in r.getMessage() for r in caplog.records) == 1
    got = own.predict(*inputs(own.text_width), False)
    assert (got - want).abs().max() / want.abs().max() < 1e-5


def test_modules_keep_a_chosen_kernel_that_runs(own: ModelBundle) -> None:
    orders = {4: (SDPBackend.MATH,), 8: (SDPBackend.MATH,)}
    fuse_projections(own.unet)
    module._give_modules(own, orders)
    assert {p.order for p in own.unet.attn_processors.values()} == {(SDPBackend.MATH,)}


@pytest.mark.slow("checkpoints")
def test_the_parts_can_be_compiled_without_a_break(own: ModelBundle) -> None:
    # What a compiler's front end makes of them: the same for every backend, and this one is quick.
    want = predicted(own.unet, own.text_width)
    accelerate(own, choose_acceleration(AccelerationMode.COMPILE, CPU), [(8, 8)], [2])
    flash, math = (SDPBackend.FLASH_ATTENTION,), (SDPBackend.MATH,)
    choose_kernels(own.unet, {4: flash, 8: math})
    parts = compile_parts(own, [(8, 8)], [2], autotune=False, backend="eager")
    got = predicted(parts.unet, own.text_width)
    assert (got - want).abs().max() / want.abs().max() < 1e-5
    with torch.inference_mode():
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(
            parts.decode(latents), own.vae.decode(latents, return_dict=False)[0], atol=1e-5
        )
        picture = torch.zeros(1, 3, 64, 64)
        mean = own.vae.encode(picture).latent_dist.parameters
        assert torch.allclose(parts.encode(picture), mean, atol=1e-5)
        ids = torch.tensor([[512, *[5] * 75, 513]])
        assert torch.allclose(parts.text_encoder(ids)[0], own.text_encoder(ids)[0], atol=1e-5)


def test_compiled_parts_are_for_their_shapes_alone(own: ModelBundle) -> None:
    own.compiled = compile_parts(own, [(8, 8)], [2, 4], autotune=False, backend="eager")
    assert own.unet_for(2, 8, 8, 77, tile=False) is own.compiled.unet
    for other in (
        own.unet_for(3, 8, 8, 77, tile=False),
        own.unet_for(2, 8, 16, 77, tile=False),
        own.unet_for(2, 8, 8, 154, tile=False),
        own.unet_for(2, 8, 8, 77, tile=True),
    ):
        assert other is own.unet


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_compiled_code_is_kept_for_one_model_device_and_mode(
    own: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set first, so that what the cache sets is undone after the test.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    cache = CompileCache(tmp_path / "compiled", own, "compile")
    assert not cache.load()
    torch.compile(torch.nn.Linear(4, 4))(torch.zeros(2, 4))
    assert cache.save()
    assert CompileCache(tmp_path / "compiled", own, "compile").load()
    for other in (
        CompileCache(tmp_path / "compiled", own, "max"),
        CompileCache(tmp_path / "compiled", replace(own, dtype=torch.bfloat16), "compile"),
        CompileCache(tmp_path / "compiled", replace(own, facts={"quantized": "int8"}), "compile"),
    ):
        assert not other.load()
    assert cache.path.parent.stat().st_mode & 0o077 == 0
    assert (tmp_path / "compiled" / "inductor" / "fxgraph").is_dir()


def test_a_folder_that_cannot_be_made_keeps_nothing(
    own: ModelBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    (tmp_path / "file").touch()
    cache = CompileCache(tmp_path / "file" / "compiled", own, "compile")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert not cache.load()
    assert "cannot be kept" in caplog.text


def test_a_damaged_file_of_compiled_code_is_left_aside(own: ModelBundle, tmp_path: Path) -> None:
    cache = CompileCache(tmp_path, own, "compile")
    cache.path.write_bytes(b"not what torch wrote")
    assert not cache.load()
