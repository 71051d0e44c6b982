"""The cost of CLIP guidance in a step, by preset: a first guess, corrected by what steps take.

Pure: no torch and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.request import ClipGuidancePreset

MEASURED: Mapping[ClipGuidancePreset, float] = {
    ClipGuidancePreset.SLOW: 3.1,
    ClipGuidancePreset.SLOWER: 3.1,
    ClipGuidancePreset.SLOWEST: 4.1,
}
"""Of ``docs/benchmarks/guidance.md``; that of the others vanished in the machine's noise."""


class GuidanceCosts:
    """By preset, the seconds that guiding one request adds to a step, over those of a step of that
    request alone. An average over a request: not every evaluation computes a gradient."""

    def __init__(self, smoothing: float = 0.1) -> None:
        self._ratios = dict(MEASURED)
        self._smoothing = smoothing

    def ratio(self, preset: ClipGuidancePreset) -> float:
        return self._ratios.get(preset, 0.0)

    def observe(self, preset: ClipGuidancePreset, ratio: float) -> None:
        """Move the average of ``preset`` towards what one step showed."""
        known = self.ratio(preset)
        self._ratios[preset] = known + self._smoothing * (max(0.0, ratio) - known)
