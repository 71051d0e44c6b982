"""Where the time of a forward goes, by kind of kernel."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from models.device import synchronize
from scripts.benchmarks.gpu.device import device

_RUNS = 2

_KINDS = (
    ("attention", ("flash", "fmha", "attention", "sdpa", "softmax")),
    ("convolution", ("conv", "implicit", "fprop", "dgrad")),
    ("matrix product", ("gemm", "cutlass", "nvjet", "cublas", "splitk", "matmul", "addmm", "::mm")),
    (
        "layout copies",
        ("nchwtonhwc", "nhwctonchw", "transpose", "tensor_transform", "permute", "copy", "memcpy"),
    ),
    ("norms", ("norm", "gn_", "moments", "welford")),
)
"""Words in a kernel's name that tell its kind: the first that has one. All others go over every
element once and count as elementwise."""

KINDS = (*(name for name, _ in _KINDS), "elementwise")


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel by its name."""
    name = kernel.lower()
    return next((kind for kind, words in _KINDS if any(w in name for w in words)), "elementwise")


@dataclass(frozen=True)
class KernelTimes:
    """Milliseconds and launches of one run: by kind, and of the kernels that take the most."""

    ms: dict[str, float]
    launches: int
    most: list[tuple[str, float, int]]

    def as_json(self) -> dict[str, object]:
        return {"ms": self.ms, "launches": self.launches, "most": self.most}


def kernel_times(run: Callable[[], object], most: int = 14) -> KernelTimes:
    """Return the kernels of ``run``, launched one by one; on a CPU its operators."""
    cuda = device().type == "cuda"
    run()
    synchronize(device())
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(_RUNS):
            run()
        synchronize(device())
    times: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for event in profiler.events() or ():
        if cuda and event.device_type == DeviceType.CUDA:
            ms = event.time_range.elapsed_us() / 1e3
        elif not cuda:
            ms = event.self_cpu_time_total / 1e3
        else:
            continue
        times[event.name] += ms / _RUNS
        counts[event.name] += 1
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, ms in times.items():
        kinds[kind_of(name)] += ms
    longest = sorted(times.items(), key=itemgetter(1), reverse=True)[:most]
    top = [(name[:100], ms, counts[name] // _RUNS) for name, ms in longest]
    return KernelTimes(kinds, sum(counts.values()) // _RUNS, top)
