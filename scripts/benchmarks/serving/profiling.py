"""Where the time goes: by stage and by operator on the real model, by line in the engine's loop."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from models.loading.loader import load_bundle
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.request import GenerationRequest, Sampler
from pipelines.vae.decode import Decoding
from pipelines.vae.encode import Encoding
from scripts.benchmarks.serving.steps import NoOpUnet, hollow_engine, run_crowd
from scripts.benchmarks.serving.traces import MIXED, Call, make_calls
from scripts.paths import ROOT

_SAMPLE_SECONDS = 0.0005
_SWITCH_SECONDS = 0.00002
_STAGES = {"pipelines/vae", "pipelines/prompt"}
"""Folders whose work is no part of a step."""
_OURS = tuple(str(ROOT / package) for package in ("pipelines", "models"))


@dataclass
class StageClock:
    """Wall-clock seconds inside each wrapped stage, on whatever thread it runs."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)

    def wrap(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started
                self.calls[name] += 1

        return timed


def as_request(call: Call) -> GenerationRequest:
    """A call of a trace as the engine takes it."""
    picture = Image.open(io.BytesIO(call.picture)).convert("RGB")
    fields = call.fields
    return GenerationRequest(
        np.array(picture),
        fields["prompt"],
        image_strength=float(fields["image_strength"]),
        cfg_scale=float(fields["cfg_scale"]),
        sampler=Sampler(fields["sampler"]),
        steps=int(fields["steps"]),
        seed=int(fields["seed"]),
    )


def profile_serving(
    model: str, device: str, dtype: str, *, size: int, requests: int, seed: int = 1
) -> list[str]:
    """``requests`` mixed requests at once through the engine: its time by stage, by operator."""
    bundle = load_bundle(model, device=device, dtype=dtype)
    clock = StageClock()
    bundle.unet.forward = clock.wrap("U-Net", bundle.unet.forward)
    bundle.text_encoder.forward = clock.wrap("text encoder", bundle.text_encoder.forward)
    engine = Engine(bundle, EngineConfig(max_queue=max(64, requests)))
    engine.start()
    parts = {
        (Encoding, "advance"): "picture in (VAE)",
        (Decoding, "launch"): "picture out (VAE)",
    }
    whole = {(kind, method): getattr(kind, method) for kind, method in parts}
    for (kind, method), name in parts.items():
        setattr(kind, method, clock.wrap(name, whole[kind, method]))
    wanted = [as_request(call) for call in make_calls(MIXED, requests, size, seed)]
    try:
        # A first pass without the profiler, so that its own cost is not in the shares.
        clock.seconds.clear()
        clock.calls.clear()
        started = time.perf_counter()
        _run(engine, wanted)
        wall = time.perf_counter() - started
        stages = dict(clock.seconds), dict(clock.calls)
        with torch_profile() as profiler:
            _run(engine, wanted)
    finally:
        engine.drain(10.0)
        for (kind, method), unwrapped in whole.items():
            setattr(kind, method, unwrapped)
    return [*_stage_lines(*stages, wall, size, requests), "", *operator_lines(profiler)]


def _run(engine: Engine, requests: list[GenerationRequest]) -> None:
    for handle in [engine.submit(request) for request in requests]:
        handle.wait(600)


@contextmanager
def torch_profile() -> Iterator[profile]:
    """torch's profiler over the operators of every thread."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        experimental_config=_ExperimentalConfig(profile_all_threads=True),
        acc_events=True,
    ) as profiler:
        yield profiler


def _stage_lines(
    seconds: dict[str, float], calls: dict[str, int], wall: float, size: int, requests: int
) -> list[str]:
    lines = [
        f"{requests} mixed requests of {size} x {size} at once, {wall:.2f} s:",
        f"{'stage':<18} {'calls':>6} {'seconds':>8} {'share':>7}",
    ]
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        lines.append(f"{name:<18} {calls[name]:>6} {spent:>8.2f} {100 * spent / wall:>6.1f} %")
    rest = wall - sum(seconds.values())
    lines.append(f"{'everything else':<18} {'':>6} {rest:>8.2f} {100 * rest / wall:>6.1f} %")
    return lines


def operator_lines(profiler: profile, most: int = 12) -> list[str]:
    """The operators with the most time of their own."""
    events = profiler.key_averages()
    on_device = any(event.self_device_time_total for event in events)

    def own(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    total = sum(map(own, events)) or 1.0
    lines = [f"{'operator':<40} {'calls':>7} {'ms':>9} {'share':>7}"]
    for event in sorted(events, key=own, reverse=True)[:most]:
        share = 100 * own(event) / total
        lines.append(
            f"{event.key[:40]:<40} {event.count:>7} {own(event) / 1e3:>9.1f} {share:>6.1f} %"
        )
    return lines


def profile_steps(
    model: str, device: str, dtype: str, *, size: int, requests: int, sampler: Sampler
) -> list[str]:
    """What the engine's thread does in steps whose U-Net does nothing."""
    with hollow_engine(model, device, dtype) as (engine, unet):
        run_crowd(engine, unet, sampler, requests, size, 50)
        with Samples(lambda: unet.thread) as samples:
            for _ in range(10):
                run_crowd(engine, unet, sampler, requests, size, 50)
        with torch_profile() as profiler:
            run_crowd(engine, unet, sampler, requests, size, 50)
    head = f"Steps of {requests} {sampler.value} requests, U-Net replaced by a no-op:"
    return [head, *samples.lines(), "", *operator_lines(profiler)]


class Samples:
    """Looks at a thread's stack every half millisecond while the context lasts.

    A sample counts for the innermost line of this project that it was in, so the time of a library
    call counts for the line that made it. A thread that waits for work is not counted, nor is what
    happens before and after a request's steps.
    """

    def __init__(self, thread: Callable[[], int]) -> None:
        self._thread = thread
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._run, daemon=True)
        self.functions: Counter[str] = Counter()
        self.by_line: Counter[str] = Counter()

    def __enter__(self) -> Samples:
        # At the usual 5 ms the sampler would see the thread only where it lets go of the
        # interpreter by itself, and never in plain Python.
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sampler.join()
        sys.setswitchinterval(self._interval)

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            frame = sys._current_frames().get(self._thread())
            if _outside_steps(frame):
                continue
            while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
                frame = frame.f_back
            if frame is not None:
                self.functions[_function_of(frame)] += 1
                self.by_line[f"{_function_of(frame)}:{frame.f_lineno}"] += 1

    def lines(self, most: int = 12) -> list[str]:
        total = sum(self.functions.values()) or 1
        lines = [f"{'share':>7}  function ({total} samples)"]
        for name, count in self.functions.most_common(most):
            lines.append(f"{100 * count / total:>5.1f} %  {name}")
        lines.append(f"{'share':>7}  line")
        for name, count in self.by_line.most_common(most):
            lines.append(f"{100 * count / total:>5.1f} %  {name}")
        return lines


def _outside_steps(frame: FrameType | None) -> bool:
    """Return whether a stack waits for work or for the U-Net, or encodes or decodes."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_receive" or code is NoOpUnet.__call__.__code__:
            return True
        file = Path(code.co_filename)
        if file.stem == "calibration" or "/".join(file.parts[-3:-1]) in _STAGES:
            return True
        frame = frame.f_back
    return False


def _function_of(frame: FrameType) -> str:
    code = frame.f_code
    return f"{Path(code.co_filename).stem}.{code.co_qualname}"
