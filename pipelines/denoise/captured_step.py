"""A step as two captured graphs, *denoise* and *mix*, and when it pays to capture one.

CLIP guidance acts between the two. There are 400 sizes and several buckets of rows: only the
configured sizes are captured at start, others once they have been used a few times, and of those
few are kept (`pipelines/denoise/latent_pool.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from models.acceleration.cuda_graphs import Capturer
from pipelines.counts import GraphCounts
from pipelines.denoise.batch import Batch, Evaluation, StaticBatch

PATIENCE = 4
"""Steps of a bucket before it is captured, in a size that nobody configured: a capture costs
about four steps (`models.acceleration.cuda_graphs.WARM_UP_RUNS` and the recording)."""


class CapturedStep:
    """The step of one pool and one bucket of rows, over tensors that stay in place."""

    def __init__(
        self,
        static: StaticBatch,
        eps: torch.Tensor,
        denoise: Callable[[Batch], torch.Tensor],
        mix: Callable[[Batch, torch.Tensor], None],
        capturer: Capturer,
    ) -> None:
        """Capture both graphs; ``eps``, (rows, 4, h, w) float32, is where they hand it over."""
        self._static, self._eps = static, eps
        batch = static.batch
        self._denoise = capturer.capture(lambda: eps.copy_(denoise(batch)))
        self._mix = capturer.capture(lambda: mix(batch, eps))

    def denoise(self, evaluations: Sequence[Evaluation]) -> torch.Tensor:
        """The guided noise prediction, (rows, 4, h, w) float32; the first ones are theirs.

        The tensor is the graphs' own: what is written into it is what `mix` takes.
        """
        self._static.write(evaluations)
        self._denoise()
        return self._eps

    def mix(self) -> None:
        """Advance the pool by what `denoise` predicted."""
        self._mix()


class CapturedSteps:
    """The captured steps of one pool, by their bucket of rows.

    ``patience`` steps of a bucket run as they come before one is captured; None: it never is.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self._steps: dict[int, CapturedStep | None] = {}  # None: it could not be captured
        self._seen: dict[int, int] = {}

    @property
    def any(self) -> bool:
        """Return whether there is something to keep."""
        return any(step is not None for step in self._steps.values())

    def awaited(self, rows: int) -> bool:
        """Return whether steps of a bucket run as they come for now, until one is captured."""
        return self.patience is not None and rows not in self._steps

    def get_or_capture(
        self, rows: int, capture: Callable[[], CapturedStep], counts: GraphCounts
    ) -> CapturedStep | None:
        """The step of a bucket; None while it runs as it comes. A failed capture is said once."""
        if rows not in self._steps:
            seen = self._seen[rows] = self._seen.get(rows, 0) + 1
            if self.patience is None or seen <= self.patience:
                return None
            self._steps[rows] = counts.capture(capture, f"a step of {rows} rows")
        return self._steps[rows]
