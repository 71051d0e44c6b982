"""How busy a device is, in the one measure that the scheduling policy asks for."""

from __future__ import annotations


class Crowding:
    """The share of arrivals that one-at-a-time service would have made wait, a moving average.

    Keeps the clock of a first-come-first-served device of the same speed beside the real one.
    """

    _MEMORY = 200
    _PRIOR = 20

    def __init__(self) -> None:
        self.share = 0.2
        self._seen = self._PRIOR
        self._free_at = float("-inf")

    def arrive(self, now: float, seconds: float) -> None:
        """A request that takes ``seconds`` alone arrives at ``now``."""
        self._seen = min(self._seen + 1, self._MEMORY)
        self.share += (float(self._free_at > now) - self.share) / self._seen
        self._free_at = max(self._free_at, now) + seconds
