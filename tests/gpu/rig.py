"""What a test of a card runs on: a card with a model of full size, or a CPU with a narrow one.

On the CPU the kernels are in torch and a graph's replay runs its function again: all of a test but
what only a card can show, so that it is known to run before it gets there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from models.acceleration.cuda_graphs import Capturer, CudaCapturer, EagerCapturer
from models.acceleration.modes import Acceleration
from models.bundle import ModelBundle
from models.spec import AccelerationMode
from pipelines.engine.calibration import guessed_costs
from pipelines.engine.engine import Engine, EngineConfig
from pipelines.handle import GenerationHandle
from pipelines.request import GenerationRequest, Pixels
from scripts.benchmarks.gpu.fast import make_fast
from scripts.benchmarks.gpu.forwards import relative_error
from scripts.benchmarks.gpu.model import RandomModel
from scripts.benchmarks.gpu.plan import FULL, NARROW, Scale, picture

GRAPHS = Acceleration(AccelerationMode.GRAPHS, graphs=True)


@cache
def model(narrow: bool) -> RandomModel:
    """Return the model of all tests, whose weights are random."""
    return RandomModel(narrow)


@dataclass(frozen=True)
class Rig:
    """A device with a model; ``dtype`` is what it serves in, ``size`` a picture's usual side."""

    device: torch.device
    narrow: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.narrow else torch.float16

    @property
    def scale(self) -> Scale:
        return NARROW if self.narrow else FULL

    @property
    def size(self) -> int:
        return self.scale.size

    def bundle(self, dtype: torch.dtype | None = None) -> ModelBundle:
        """Return a copy of the model that runs through its modules."""
        return model(self.narrow).bundle(dtype or self.dtype)

    def fast(self, bundle: ModelBundle) -> ModelBundle:
        """Have a bundle run through forwards of our own, as a start does; all of it."""
        words = make_fast(bundle, self.scale)
        assert bundle.fast is not None, words
        assert bundle.fast.unet is not None, words
        assert bundle.fast.vae is not None, words
        return bundle

    def capturer(self) -> Capturer:
        return EagerCapturer() if self.narrow else CudaCapturer(self.device)

    def ask(self, seed: int = 1, size: int | None = None, **changed: Any) -> GenerationRequest:
        """Return a request of few steps."""
        side = size or self.size
        options = {"steps": 10, "image_strength": 0.35, "cfg_scale": 7.0, **changed}
        return GenerationRequest(
            picture(side, side, seed), f"a house, {seed}", seed=seed, **options
        )

    @contextmanager
    def engine(self, bundle: ModelBundle, **options: Any) -> Iterator[Engine]:
        """A started engine with graphs and fast forwards, of one hot size unless told."""
        options = {"acceleration": GRAPHS, "capture_sizes": [(self.size, self.size)], **options}
        if self.narrow:
            options.setdefault("row_buckets", (2, 4, 8, 16))
        engine = Engine(bundle, EngineConfig(**options), guessed_costs())
        engine.start()
        try:
            yield engine
        finally:
            engine.drain(5.0)


def images(handles: Sequence[GenerationHandle]) -> list[Pixels]:
    """Wait for all of them."""
    return [handle.wait(120).image for handle in handles]


def assert_near(got: torch.Tensor, want: torch.Tensor, most: float) -> None:
    """Compare by the relative error of the whole."""
    error = relative_error(got.cpu(), want.cpu())
    assert error <= most, f"relative error {error:.2e} over {most:.0e}"  # a NaN is no less


class Compilations:
    """Counts kernels that this process compiles, or reads from the disk, while it is entered."""

    def __init__(self) -> None:
        self.kernels: list[str] = []

    def __enter__(self) -> Compilations:
        from triton import knobs

        self._knobs, self._before = knobs.compilation, knobs.compilation.listener
        knobs.compilation.listener = self._listen
        return self

    def __exit__(self, *_: object) -> None:
        self._knobs.listener = self._before

    def _listen(self, *, src: Any, **_: object) -> None:
        self.kernels.append(str(getattr(src, "name", src)))
