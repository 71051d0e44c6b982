"""What work costs: a table of measured seconds, read between its points, that learns as it runs.

Pixels are latent pixels (one for every 8 x 8 pixels of the picture) everywhere here. Pure: no torch
and no clock.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TickPoint:
    """One denoise tick of ``rows`` U-Net rows of ``pixels`` latent pixels takes ``seconds``."""

    pixels: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class PictureCost:
    """Seconds of a VAE pass over one picture: ``fixed + per_pixel * pixels``."""

    fixed: float
    per_pixel: float

    def seconds(self, pixels: int) -> float:
        return self.fixed + self.per_pixel * pixels


@dataclass(frozen=True)
class Provenance:
    """Where a table comes from: said in the file, so that no number goes about without it."""

    name: str
    source: str = ""
    assumptions: tuple[str, ...] = ()


@dataclass(eq=False)
class CostTable:
    """Seconds of every kind of work unit.

    ``points`` are a full lattice: each number of rows measured at each number of pixels. Between
    points seconds are linear in rows and in pixels. Beyond the last rows the last slope goes on;
    below the first, seconds shrink along the first slope but no faster than in proportion. Beyond
    the first and the last pixels they are in proportion to pixels. Whatever the points say, seconds
    never fall when rows or pixels grow.

    ``tick_overhead`` is what a tick takes outside the U-Net, in seconds. ``smoothing`` is the
    weight of a new observation in the moving average.
    """

    points: Iterable[TickPoint]
    encode: PictureCost
    decode: PictureCost
    tick_overhead: float = 0.0
    provenance: Provenance = field(default_factory=lambda: Provenance("unnamed"))
    smoothing: float = 0.1
    _pixels: list[int] = field(init=False, repr=False)
    _rows: list[int] = field(init=False, repr=False)
    _seconds: list[list[float]] = field(init=False, repr=False)  # [pixels][rows]
    _cache: dict[tuple[int, int], float] = field(init=False, repr=False, default_factory=dict)
    _raised: list[list[float]] | None = field(init=False, repr=False, default=None)  # `_monotone`

    def __post_init__(self) -> None:
        self.points = tuple(self.points)
        known = {(p.pixels, p.rows): p.seconds for p in self.points}
        self._pixels = sorted({p.pixels for p in self.points})
        self._rows = sorted({p.rows for p in self.points})
        if not known or len(known) != len(self._pixels) * len(self._rows):
            raise ValueError("a cost table needs every number of rows at every number of pixels")
        if self._pixels[0] < 1 or self._rows[0] < 1 or min(known.values()) <= 0.0:
            raise ValueError("pixels, rows and seconds of a cost table are above zero")
        if not 0.0 < self.smoothing <= 1.0:
            raise ValueError("smoothing is above 0 and at most 1")
        self._seconds = [[known[p, r] for r in self._rows] for p in self._pixels]

    # Reading

    def tick_seconds(self, pixels: int, rows: int) -> float:
        """Predicted seconds of one denoise tick, its overhead included; both at least 1."""
        seconds = self._cache.get((pixels, rows))
        if seconds is None:
            if self._raised is None:
                self._raised = self._monotone()
            column = list(accumulate((_over_rows(self._rows, c, rows) for c in self._raised), max))
            seconds = self.tick_overhead + _over_pixels(self._pixels, column, pixels)
            self._cache[pixels, rows] = seconds
        return seconds

    def encode_seconds(self, pixels: int) -> float:
        return self.encode.seconds(pixels)

    def decode_seconds(self, pixels: int) -> float:
        return self.decode.seconds(pixels)

    def _monotone(self) -> list[list[float]]:
        """The lattice, raised where a noisy measurement falls although rows or pixels grow."""
        raised: list[list[float]] = []
        for seconds in self._seconds:
            column: list[float] = []
            for j, value in enumerate(seconds):
                below = column[-1] if column else 0.0
                beside = raised[-1][j] if raised else 0.0
                column.append(max(value, below, beside))
            raised.append(column)
        return raised

    # Learning

    def observe_tick(self, pixels: int, rows: int, seconds: float) -> None:
        """Move the surrounding lattice points towards one observed tick.

        Each point takes a share of the relative error that is its weight in the interpolation, so
        that one size's ticks teach the sizes near it. Points of less work that say more are lowered
        to it: they would hold up what is read there, and a table too high never came down.
        """
        seconds -= self.tick_overhead
        predicted = self.tick_seconds(pixels, rows) - self.tick_overhead
        if seconds <= 0.0 or predicted <= 0.0:
            return
        error = seconds / predicted - 1.0
        for i, across in _weights(self._pixels, pixels):
            for j, along in _weights(self._rows, rows):
                self._seconds[i][j] *= 1.0 + self.smoothing * across * along * error
                if across * along > 0.0 and error < 0.0:
                    self._lower_to(i, j)
        self._cache.clear()
        self._raised = None

    def _lower_to(self, i: int, j: int) -> None:
        for column in self._seconds[: i + 1]:
            column[: j + 1] = [min(value, self._seconds[i][j]) for value in column[: j + 1]]

    def observe_encode(self, pixels: int, seconds: float) -> None:
        self.encode = _scaled(self.encode, pixels, seconds, self.smoothing)

    def observe_decode(self, pixels: int, seconds: float) -> None:
        """``seconds`` of a whole decode, all of its parts together."""
        self.decode = _scaled(self.decode, pixels, seconds, self.smoothing)

    # Keeping

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.provenance.name,
            "source": self.provenance.source,
            "assumptions": list(self.provenance.assumptions),
            "tick_overhead": self.tick_overhead,
            "encode": {"fixed": self.encode.fixed, "per_pixel": self.encode.per_pixel},
            "decode": {"fixed": self.decode.fixed, "per_pixel": self.decode.per_pixel},
            "ticks": [
                [pixels, rows, self._seconds[i][j]]
                for i, pixels in enumerate(self._pixels)
                for j, rows in enumerate(self._rows)
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CostTable:
        """Raises KeyError, TypeError or ValueError where the data is not a table."""
        return cls(
            points=[TickPoint(int(p), int(r), float(s)) for p, r, s in data["ticks"]],
            encode=PictureCost(**data["encode"]),
            decode=PictureCost(**data["decode"]),
            tick_overhead=float(data["tick_overhead"]),
            provenance=Provenance(
                data["name"], data.get("source", ""), tuple(data.get("assumptions", ()))
            ),
        )

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> CostTable:
        return cls.from_json(json.loads(path.read_text()))


def _over_rows(places: Sequence[int], values: Sequence[float], at: int) -> float:
    """Rising ``values`` at ``places``, read at ``at``; a single place tells of no gain at all."""
    if len(places) == 1:
        return values[0] * at / places[0]
    if at <= places[0]:
        slope = (values[1] - values[0]) / (places[1] - places[0])
        return max(values[0] - slope * (places[0] - at), values[0] * at / places[0])
    if at >= places[-1]:
        slope = (values[-1] - values[-2]) / (places[-1] - places[-2])
        return values[-1] + slope * (at - places[-1])
    return _between(places, values, at)


def _over_pixels(places: Sequence[int], values: Sequence[float], at: int) -> float:
    """Rising ``values`` at ``places``, read at ``at``; in proportion beyond either end."""
    if at <= places[0]:
        return values[0] * at / places[0]
    if at >= places[-1]:
        return values[-1] * at / places[-1]
    return _between(places, values, at)


def _between(places: Sequence[int], values: Sequence[float], at: int) -> float:
    i = bisect_left(places, at)
    share = (at - places[i - 1]) / (places[i] - places[i - 1])
    return values[i - 1] + share * (values[i] - values[i - 1])


def _weights(places: Sequence[int], at: int) -> list[tuple[int, float]]:
    """The points that a reading at ``at`` rests on, with their shares."""
    if at <= places[0]:
        return [(0, 1.0)]
    if at >= places[-1]:
        return [(len(places) - 1, 1.0)]
    for i, (low, high) in enumerate(pairwise(places)):
        if low <= at <= high:
            share = (at - low) / (high - low)
            return [(i, 1.0 - share), (i + 1, share)]
    raise AssertionError("places are sorted")


def _scaled(cost: PictureCost, pixels: int, seconds: float, smoothing: float) -> PictureCost:
    predicted = cost.seconds(pixels)
    if seconds <= 0.0 or predicted <= 0.0:
        return cost
    factor = 1.0 + smoothing * (seconds / predicted - 1.0)
    return PictureCost(cost.fixed * factor, cost.per_pixel * factor)
