"""The stages of a request in the engine: when each began and ended, and how full its steps were."""

from __future__ import annotations

from dataclasses import dataclass, field

STAGES = ("queue", "encode", "denoise", "decode")


@dataclass
class Timeline:
    """The engine's thread writes it; whoever holds the request's handle may read it.

    ``spans`` has when each of `STAGES` that was reached began and ended, in `time.monotonic()`
    seconds: from the beginning of its first unit to the end of its last one, the units of others
    between them included. ``evaluations`` of the request have ended, in steps of ``rows`` U-Net
    rows together, those of others included.
    """

    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    evaluations: int = 0
    rows: int = 0

    def extend(self, stage: str, began: float, ended: float) -> None:
        """Let ``stage`` last until ``ended``; it began at ``began`` if it had not before."""
        first, _ = self.spans.get(stage, (began, ended))
        self.spans[stage] = first, max(first, ended)

    def seconds(self, stage: str) -> float | None:
        """Return how long a stage lasted, or None where it was not reached."""
        span = self.spans.get(stage)
        return None if span is None else span[1] - span[0]

    @property
    def rows_shared(self) -> float:
        """Return the mean U-Net rows of the steps that the request was in; 0 before the first."""
        return self.rows / self.evaluations if self.evaluations else 0.0
