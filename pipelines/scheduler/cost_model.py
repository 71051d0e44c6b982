"""The cost model: a table of measured seconds, read between its points, that learns as it runs.

Pixels are latent pixels (one for every 8 x 8 pixels of the picture) everywhere here. Pure: no torch
and no clock.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

_PLAIN_CHUNKS = 2
"""Chunks of a prompt and a negative prompt that are no longer than one chunk each."""
_SIDES = (320, 512, 768, 1024, 1536)
"""Sides in pixels of the images whose costs are told, over the range of the contract."""
MOST_ERROR = 4.0
"""The relative error that one observation may teach at most; beyond it is a hiccup."""


@dataclass(frozen=True)
class StepPoint:
    """One denoise step of ``rows`` U-Net rows of ``pixels`` latent pixels takes ``seconds``."""

    pixels: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class ImageCost:
    """Seconds of a VAE pass over one picture: ``fixed + per_pixel * pixels``."""

    fixed: float
    per_pixel: float

    def seconds(self, pixels: int) -> float:
        return self.fixed + self.per_pixel * pixels


@dataclass(frozen=True)
class TextCost:
    """Seconds that longer texts add; a chunk is what CLIP reads at a time.

    A step takes ``step`` more for each row and each chunk beyond the first, which is in the points
    of the table. Encoding a text takes ``encode`` for each of its chunks.
    """

    step: ImageCost = ImageCost(0.0, 0.0)
    encode: float = 0.0
    chunk_tokens: int = 77


@dataclass(frozen=True)
class Provenance:
    """The origin of a table: said in the file, so that no number goes about without it."""

    name: str
    source: str = ""
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class SizeCost:
    """What a request for one image of ``pixels`` takes alone, in predicted seconds.

    Each ``evaluation`` of the U-Net with guidance, and once the ``rest``: text, encode, decode.
    """

    pixels: int
    evaluation: float
    rest: float


@dataclass(eq=False)
class CostTable:
    """Seconds of every kind of work unit.

    ``points`` are a full lattice: each number of rows measured at each number of pixels. Between
    points seconds are linear in rows and in pixels. Beyond the last rows the last slope goes on;
    below the first, seconds shrink along the first slope but no faster than in proportion. Beyond
    the first and the last pixels they are in proportion to pixels. Whatever the points say, seconds
    never fall when rows or pixels grow.

    The points are of steps of one chunk of text without circular padding. What more chunks add is
    in ``text``; with circular padding all of it is ``tile`` times as long. ``step_overhead`` is
    what a step takes outside the U-Net, in seconds. ``smoothing`` is the weight of a new
    observation in the moving average.
    """

    points: Iterable[StepPoint]
    encode: ImageCost
    decode: ImageCost
    step_overhead: float = 0.0
    text: TextCost = TextCost()
    tile: float = 1.0
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

    def step_seconds(self, pixels: int, rows: int, tokens: int = 0, tile: bool = False) -> float:
        """Return the predicted seconds of one denoise step, its overhead included.

        ``pixels`` and ``rows`` are at least 1, ``tokens`` the length of the text states; 0 is one
        chunk. ``tile`` says that convolutions pad circularly.
        """
        seconds = self._plain_seconds(pixels, rows) + self._text_seconds(pixels, rows, tokens)
        return seconds * self.tile if tile else seconds

    def _text_seconds(self, pixels: int, rows: int, tokens: int) -> float:
        more = max(0.0, tokens / self.text.chunk_tokens - 1.0)
        return rows * more * self.text.step.seconds(pixels) if more else 0.0

    def _plain_seconds(self, pixels: int, rows: int) -> float:
        seconds = self._cache.get((pixels, rows))
        if seconds is None:
            if self._raised is None:
                self._raised = self._monotone()
            column = list(accumulate((_over_rows(self._rows, c, rows) for c in self._raised), max))
            seconds = self.step_overhead + _over_pixels(self._pixels, column, pixels)
            self._cache[pixels, rows] = seconds
        return seconds

    def encode_seconds(self, pixels: int) -> float:
        return self.encode.seconds(pixels)

    def decode_seconds(self, pixels: int) -> float:
        return self.decode.seconds(pixels)

    def by_size(self, rows: int = 2) -> list[SizeCost]:
        """Return what requests for squares of some sizes take alone, the smallest first.

        ``rows`` are those of a step of one request, padding included.
        """
        return [self._alone(side, rows) for side in _SIDES]

    def _alone(self, side: int, rows: int) -> SizeCost:
        pixels = (side // 8) ** 2
        rest = self.encode_seconds(pixels) + self.decode_seconds(pixels)
        rest += _PLAIN_CHUNKS * self.text.encode
        return SizeCost(side * side, self.step_seconds(pixels, rows), rest)

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

    def observe_step(
        self, pixels: int, rows: int, seconds: float, tokens: int = 0, tile: bool = False
    ) -> None:
        """Learn from one step, of the arguments of `step_seconds`, that took ``seconds``.

        A step corrects only what sets it apart from a plain one: circular padding its factor, a
        long text its share. A plain one moves the surrounding lattice points, each by a share of
        the relative error that is its weight in the interpolation, so that one size's steps teach
        the sizes near it. Points of less work that say more are lowered to it: they would hold up
        what is read there, and a table too high never came down.
        """
        if seconds <= 0.0:
            return
        if tile:
            error = _error(seconds, self.step_seconds(pixels, rows, tokens, tile))
            self.tile *= 1.0 + self.smoothing * error
        elif tokens > self.text.chunk_tokens:
            self._observe_text(pixels, rows, tokens, seconds)
        else:
            self._observe_plain(pixels, rows, seconds - self.step_overhead)

    def _observe_plain(self, pixels: int, rows: int, seconds: float) -> None:
        predicted = self._plain_seconds(pixels, rows) - self.step_overhead
        if seconds <= 0.0 or predicted <= 0.0:
            return
        error = _error(seconds, predicted)
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

    def _observe_text(self, pixels: int, rows: int, tokens: int, seconds: float) -> None:
        share = max(0.0, seconds - self._plain_seconds(pixels, rows))
        predicted = self._text_seconds(pixels, rows, tokens)
        if predicted > 0.0:
            step = _scaled(self.text.step, 1.0 + self.smoothing * _error(share, predicted))
        else:
            more = rows * (tokens / self.text.chunk_tokens - 1.0)
            step = ImageCost(0.0, self.smoothing * share / (more * pixels))
        self.text = replace(self.text, step=step)

    def observe_encode(
        self, pixels: int, seconds: float, parts: int = 1, text_chunks: int = 0
    ) -> None:
        """Learn from one of ``parts`` parts of an encode, in which ``text_chunks`` were encoded.

        More than a pair of plain texts has teaches what a chunk of text takes, less what a picture
        does.
        """
        picture = self.encode_seconds(pixels) / parts
        if text_chunks > _PLAIN_CHUNKS:
            each = max(0.0, seconds - picture) / text_chunks
            encode = self.text.encode + self.smoothing * (each - self.text.encode)
            self.text = replace(self.text, encode=encode)
        else:
            seconds -= text_chunks * self.text.encode
            self.encode = _moved(self.encode, picture, seconds, self.smoothing)

    def observe_decode(self, pixels: int, seconds: float) -> None:
        """``seconds`` of a whole decode, all of its parts together."""
        self.decode = _moved(self.decode, self.decode_seconds(pixels), seconds, self.smoothing)

    # Keeping

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.provenance.name,
            "source": self.provenance.source,
            "assumptions": list(self.provenance.assumptions),
            "step_overhead": self.step_overhead,
            "encode": asdict(self.encode),
            "decode": asdict(self.decode),
            "text": asdict(self.text),
            "tile": self.tile,
            "steps": [
                [pixels, rows, self._seconds[i][j]]
                for i, pixels in enumerate(self._pixels)
                for j, rows in enumerate(self._rows)
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CostTable:
        """Raises KeyError, TypeError or ValueError where the data is not a table."""
        return cls(
            points=[StepPoint(int(p), int(r), float(s)) for p, r, s in data["steps"]],
            encode=ImageCost(**data["encode"]),
            decode=ImageCost(**data["decode"]),
            step_overhead=float(data["step_overhead"]),
            text=_text_cost(data["text"]) if "text" in data else TextCost(),
            tile=float(data.get("tile", 1.0)),
            provenance=Provenance(
                data["name"], data.get("source", ""), tuple(data.get("assumptions", ()))
            ),
        )

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> CostTable:
        return cls.from_json(json.loads(path.read_text()))


def _text_cost(data: dict[str, Any]) -> TextCost:
    step, encode = ImageCost(**data["step"]), float(data["encode"])
    return TextCost(step, encode, int(data["chunk_tokens"]))


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


def _error(seconds: float, predicted: float) -> float:
    """Return the relative error, at most `MOST_ERROR`: a hiccup is no news of what work costs."""
    return min(seconds / predicted - 1.0, MOST_ERROR)


def _moved(cost: ImageCost, predicted: float, seconds: float, smoothing: float) -> ImageCost:
    if seconds <= 0.0 or predicted <= 0.0:
        return cost
    return _scaled(cost, 1.0 + smoothing * _error(seconds, predicted))


def _scaled(cost: ImageCost, factor: float) -> ImageCost:
    return ImageCost(cost.fixed * factor, cost.per_pixel * factor)
