"""Capturing work on the device once, to replay it with one launch: CUDA graphs.

A step of Stable Diffusion is about a thousand kernels; launched one by one, the host is the slower
one for small batches. What is captured must read and write tensors that never move, take no
decision on the host, and allocate alike every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Forward = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

WARM_UP_RUNS = 3
"""Runs before a capture: the first ones choose kernels and make workspaces, which wait."""


class Capturer(Protocol):
    """Turns a function over tensors that stay in place into something that replays it."""

    def capture(self, run: Callable[[], object]) -> Callable[[], None]:
        """Run ``run`` a few times and record it. Raises RuntimeError where that cannot be done."""
        ...


class CudaCapturer:
    """Captures CUDA graphs of one device, all in one memory pool.

    They may share it because no graph's result lives in it: each run copies its result into a
    tensor of its own, made before the capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # Graphs that share a pool are captured on one stream (torch.cuda.graph's note).
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(self, run: Callable[[], object]) -> Callable[[], None]:
        """Warm up on the side stream, as captures must, then record."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_RUNS):
                    run()
        finally:  # a run that failed may have left work behind, on memory that is freed next
            current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Thread-local: the thread of the safety check may allocate meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                run()
        finally:  # where the graph cannot be made its context leaves the side stream current
            torch.cuda.set_stream(current)

        def replay() -> None:
            graph.replay()

        return replay


class EagerCapturer:
    """Stands in for graphs where there is no CUDA: a replay runs the function again.

    It shows all of a capture but the recording: static tensors, padding, the lives of pools.
    """

    def __init__(self) -> None:
        self.captures = 0

    def capture(self, run: Callable[[], object]) -> Callable[[], None]:
        run()
        self.captures += 1

        def replay() -> None:
            run()

        return replay


class CapturedPass:
    """A forward captured over tensors that stay in place: ``captured(given)`` runs it.

    ``given`` is always of the shape and dtype of the first one. Raises RuntimeError where it cannot
    be captured.
    """

    def __init__(self, forward: Forward, given: torch.Tensor, capturer: Capturer) -> None:
        self._given = given.clone()
        # Outside the graphs' memory, so that a later replay of another graph cannot touch them.
        self._made = [torch.empty_like(tensor) for tensor in forward(self._given)]

        def run() -> None:
            for mine, made in zip(self._made, forward(self._given), strict=True):
                mine.copy_(made)

        self._replay = capturer.capture(run)

    def __call__(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the forward makes of ``given``, in tensors that are the caller's own."""
        self._given.copy_(given)
        self._replay()
        return tuple(made.clone() for made in self._made)
