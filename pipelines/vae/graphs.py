"""Whole encodes and decodes captured as graphs, by size and number of pictures.

A pass over a picture of 512 x 512 is launch-bound when it runs as it comes. As with steps, the
configured sizes are captured at their first pass, others once they have been used a few times, and
only while few are kept. Passes in parts, in tiles and with circular padding run as they come.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import torch

from models.acceleration.cuda_graphs import CapturedPass, Capturer, Forward
from pipelines.counts import GraphCounts

Tensor = torch.Tensor

PATIENCE = 4
"""Passes before one is captured, in a size that nobody configured: a capture costs about four."""


@dataclass(frozen=True)
class PassKey:
    """An encode or a decode (``kind``) of some pictures with latents of one size."""

    kind: str
    pictures: int
    height: int
    width: int


class VaeGraphs:
    """Runs whole passes, captured where they are. The engine's thread owns it.

    ``hot`` are the (h, w) of latents that are captured at once and always kept; of other passes
    the ``keep`` used last are kept.
    """

    def __init__(
        self, capturer: Capturer, hot: Collection[tuple[int, int]] = (), keep: int = 8
    ) -> None:
        self._capturer, self._hot, self._keep = capturer, frozenset(hot), keep
        self._captured: OrderedDict[PassKey, CapturedPass | None] = OrderedDict()
        self._seen: dict[PassKey, int] = {}
        self.counts = {kind: GraphCounts() for kind in ("encode", "decode")}

    def run(self, key: PassKey, given: Tensor, forward: Forward) -> tuple[Tensor, ...]:
        """Return what ``forward`` makes of ``given``, in tensors that are the caller's own.

        All forwards of one key must do the same. A failed capture is said once.
        """
        captured = self._get_or_capture(key, given, forward)
        self.counts[key.kind].count_run(captured is not None)
        return forward(given) if captured is None else captured(given)

    def _get_or_capture(self, key: PassKey, given: Tensor, forward: Forward) -> CapturedPass | None:
        if key not in self._captured:
            hot = (key.height, key.width) in self._hot
            seen = self._seen[key] = self._seen.get(key, 0) + 1
            if not hot and seen <= PATIENCE:
                return None
            self._make_room(hot)
            self._captured[key] = self.counts[key.kind].capture(
                partial(CapturedPass, forward, given, self._capturer),
                f"an {key.kind} of {key.pictures} pictures",
            )
        self._captured.move_to_end(key)
        return self._captured[key]

    def _make_room(self, hot: bool) -> None:
        others = [k for k in self._captured if (k.height, k.width) not in self._hot]
        if not hot and len(others) >= self._keep:
            del self._captured[others[0]], self._seen[others[0]]  # the one used longest ago
