"""Count the kernels that a forward launches and the bytes that they move, on meta tensors.

Every operator that makes a tensor is one kernel that reads its arguments and writes its result
once. What torch does besides on CUDA is added by hand: a convolution adds its bias in a kernel of
its own; group norm copies a picture out of channels_last, reads it twice and writes it, and the
next convolution copies it back (`models.peak_memory.MetaKernels`). Our own kernels count as
`models/acceleration/triton_kernels.py` launches them. What a cache saves, and what a library splits
into several kernels or pads, is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from models.acceleration.torch_kernels import TorchKernels
from models.acceleration.triton_kernels import Geometry
from models.peak_memory import MetaKernels

Tensor = torch.Tensor

_FREE = {"empty", "empty_like", "new_empty", "detach", "_unsafe_view", "alias", "lift_fresh"}
_PRODUCTS = {"mm", "addmm", "bmm"}
_COPIES = {"clone", "copy_", "cat", "_to_copy"}


class Count:
    """Launches and bytes by category."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    def add(self, category: str, *tensors: Tensor) -> None:
        """One kernel over tensors, each of which it reads or writes once."""
        self.launches[category] += 1
        self.moved[category] += sum(t.numel() * t.element_size() for t in tensors)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, count: Count) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = count

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = list(_tensors(args))
        storages = {t.untyped_storage() for t in given}
        results = list(_tensors(made))
        in_place = name.endswith("_")
        view = not in_place and all(t.untyped_storage() in storages for t in results)
        if name in _FREE or view:
            return made
        if name == "convolution":
            self._count.add("convolution", given[0], given[1], *results)
            if args[2] is not None:
                self._count.add("elementwise", *results, *results)
            return made
        category = "product" if name in _PRODUCTS else "copy" if name in _COPIES else "elementwise"
        self._count.add(category, *given, *([] if in_place and name == "copy_" else results))
        return made


class _Functions(TorchFunctionMode):
    """Counts what `MetaKernels` carries out without its operators."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count, self._kernels = count, MetaKernels(on_cuda=True)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            rows, heads, tokens, _ = query.shape
            # As a card's kernels lay it out: heads beside one another.
            made = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)
            self._count.add("attention", *args[:3], made)
            return made
        if func is F.group_norm:
            with self._kernels:
                made = func(*args, **kwargs)
            self._count.add("norm", args[0])
            self._count.add("norm")  # a scale and a shift of each channel
            self._count.add("norm", args[0], made)
            return made
        with self._kernels:
            return func(*args, **kwargs)


class CountingKernels(TorchKernels):
    """Our kernels on meta tensors, as a geometry launches them."""

    def __init__(self, count: Count, geometry: Geometry) -> None:
        super().__init__(geometry.folds_upsampling)
        self._count, self._geometry = count, geometry

    def joins(self, channels: int, skipped: int) -> bool:
        return self._geometry.tiles

    def group_norm(self, x: Tensor, norm: Any, **options: Any) -> Tensor:
        skip = options.get("skip")
        read = [x] if skip is None else [x, skip]
        n, _, height, width = x.shape
        y = _picture(x, n, norm.num_channels, height, width)
        if skip is None and height * width <= self._geometry.whole_below:
            self._count.add("norm", *read, y)
            return y
        self._count.add("norm", *read)
        self._count.add("norm")
        self._count.add("norm", *read, y)
        return y

    def bias_residual(self, x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        self._count.add("elementwise", x, x, *([] if residual is None else [residual]))
        return torch.empty_like(x)

    def geglu(self, x: Tensor) -> Tensor:
        made = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        self._count.add("elementwise", x, made)
        return made

    def layer_norm(
        self, x: Tensor, norm: Any, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._count.add("norm", x, x, *([] if residual is None else [residual, x]))
        return torch.empty_like(x), torch.empty_like(x)

    def interleave(self, phases: Tensor, bias: Tensor) -> Tensor:
        n, channels, height, width = phases.shape
        made = _picture(phases, n, channels // 4, 2 * height - 2, 2 * width - 2)
        self._count.add("elementwise", made, made)
        return made


def _picture(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def count_forward(forward: Callable[[Count], object], count: Count | None = None) -> Count:
    """Return what ``forward``, over meta tensors, launches and moves; it is given the count."""
    count = count or Count()
    with torch.no_grad(), _Functions(count), _Operators(count):
        forward(count)
    return count


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
