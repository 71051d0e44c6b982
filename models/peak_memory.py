"""Counts the bytes of tensors that live at the same time, without a device that has them.

On meta tensors a forward of full size computes nothing and allocates nothing, yet every operator
says what it would have allocated. What no operator shows is not counted: the workspaces of
convolution and matrix libraries, and the rounding and the fragments of an allocator.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WIDEST_HEAD_IN_REGISTERS = 128


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it ``now`` and ``peak`` count the bytes of what operators allocated and still lives.

    Tensors made before do not count, nor do views. To be used under ``no_grad``: in inference mode
    composite operators (a group norm, a linear layer) come in one piece and hide their temporaries.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        given = {id(t.untyped_storage()) for t in _tensors((args, kwargs))}
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            known = self._known.get(id(storage))
            if id(storage) not in given and (known is None or known() is not storage):
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: object) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class MetaKernels(TorchFunctionMode):
    """Within it meta tensors meet kernels that allocate what those of the device would.

    - Scaled dot product attention is fused. It allocates its output, and for heads wider than 128
      in half precision a float32 copy of that, in which torch's memory-efficient kernel sums
      (``kNeedsOutputAccumulatorBuffer`` in its kernel_forward.h). On meta tensors torch would take
      the math kernel, whose scores are quadratic in pixels.
    - ``on_cuda`` group norm copies an input in channels_last and gives the other layout, and a
      convolution of channels_last weights copies an input of the other layout and gives
      channels_last (torch's group_norm.cpp and Convolution.cpp). On the CPU neither copies.

    They compute nothing.
    """

    def __init__(self, on_cuda: bool) -> None:
        super().__init__()
        self._on_cuda = on_cuda

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args[:3])
        if func is F.group_norm:
            return torch.empty_like(args[0].contiguous() if self._on_cuda else args[0])
        if func is torch.conv2d and self._on_cuda and _in_channels_last(args[1]):
            x = args[0].contiguous(memory_format=torch.channels_last)
            shape = func(x, *args[1:], **kwargs).shape
            return torch.empty(
                shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
            )
        return func(*args, **kwargs)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    shape = (*query.shape[:-1], value.shape[-1])
    accumulator = None
    if value.shape[-1] > _WIDEST_HEAD_IN_REGISTERS and query.dtype is not torch.float32:
        accumulator = query.new_empty(shape, dtype=torch.float32)
    made = query.new_empty(shape)
    del accumulator
    return made


def _in_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def peak_on_meta(forward: Callable[[], object], on_cuda: bool) -> int:
    """Bytes that ``forward``, over meta tensors, would have of a CUDA device or of the CPU."""
    memory = PeakMemory()
    with torch.inference_mode(False), torch.no_grad(), MetaKernels(on_cuda), memory:
        forward()
    return memory.peak


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
