"""The choice of a model's device and dtype, and transfers to and from the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from models.cpu import choose_by_cpu, read_cpuinfo
from models.errors import ModelLoadError

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_BFLOAT16_CAPABILITY = (8, 0)
"""Cards before have no such arithmetic; torch emulates some of it."""


def choose_device(device: str = "auto") -> torch.device:
    """``auto`` takes CUDA where there is one, else the CPU. Raises ModelLoadError.

    Others, such as Apple's MPS, are refused: nobody has tried whether their pictures are right.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelLoadError(f"device {device!r} is not one that torch knows") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"device {device!r} is not one to run on here: use cpu or cuda")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(f"device {device!r} was asked for, but torch sees no CUDA device")
    if chosen.type == "cuda" and (chosen.index or 0) >= (cards := torch.cuda.device_count()):
        seen = "one CUDA device here, cuda:0"
        if cards > 1:
            seen = f"{cards} CUDA devices here, cuda:0 to cuda:{cards - 1}"
        raise ModelLoadError(f"device {device!r} was asked for, but torch sees {seen}")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` takes float16 on CUDA, and on the CPU what `models.cpu` knows to be faster.

    Raises ModelLoadError.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if choose_by_cpu(read_cpuinfo()).bfloat16 else torch.float32
    if dtype not in _DTYPES:
        raise ModelLoadError(f"dtype {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    if _DTYPES[dtype] is torch.float16 and device.type == "cpu":
        raise ModelLoadError("dtype 'float16' is not for the CPU: use float32 or bfloat16")
    if _DTYPES[dtype] is torch.bfloat16 and device.type == "cuda":
        has = torch.cuda.get_device_capability(device)
        if has < _BFLOAT16_CAPABILITY:
            raise ModelLoadError(
                "dtype 'bfloat16' needs a CUDA device of compute capability "
                f"{_in_words(_BFLOAT16_CAPABILITY)} or higher; {device} has {_in_words(has)}: "
                "use float16 or float32"
            )
    return _DTYPES[dtype]


def _in_words(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def dtype_in_words(asked: str, device: torch.device) -> str:
    """Return the dtype that ``asked`` comes to on ``device``, and why. Raises ModelLoadError."""
    name = str(choose_dtype(asked, device)).removeprefix("torch.")
    if asked != "auto":
        return f"{name}, as asked for"
    why = "on CUDA" if device.type == "cuda" else choose_by_cpu(read_cpuinfo()).reason
    return f"{name}, chosen: {why}"


def synchronize(device: torch.device) -> None:
    """Wait for the device: on CUDA a call returns before its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_current(device: torch.device) -> None:
    """Make a card the calling thread's own: streams and events are otherwise the first card's."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def upload(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A small array on ``device``; to CUDA from pinned memory, so that the host need not wait."""
    return host_tensor(array, device).to(device, non_blocking=True)


def host_tensor(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """An array as a tensor on the host, pinned if it is to go to CUDA.

    torch keeps pinned blocks, and hands one out again only when its copies are done.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


class Arrival:
    """Tensors on their way to the host."""

    def __init__(
        self, tensors: tuple[torch.Tensor, ...], copied: torch.cuda.Event | None = None
    ) -> None:
        self._tensors, self._copied = tensors, copied

    def wait(self) -> tuple[torch.Tensor, ...]:
        """Return them once they are there, in memory of their own."""
        if self._copied is None:
            return self._tensors
        self._copied.synchronize()
        # Out of pinned memory, of which a caller might keep any amount.
        return tuple(tensor.clone() for tensor in self._tensors)


def download(*tensors: torch.Tensor) -> Arrival:
    """Begin to copy tensors of one device to the host; on CUDA the call does not wait."""
    if not tensors[0].is_cuda:
        return Arrival(tensors)
    pinned = tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors)
    for host, tensor in zip(pinned, tensors, strict=True):
        host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return Arrival(pinned, copied)
