"""Cost tables that are given, not measured: shapes to tune a policy on.

Each is made from a few figures that the table itself names, and kept as JSON in
``cost_tables/``; ``scripts/simulate_load --write-tables`` makes the files again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

from pipelines.scheduler.cost_model import CostTable, ImageCost, Provenance, StepPoint

FOLDER = Path(__file__).resolve().parent / "cost_tables"

_PIXELS = (1600, 2304, 4096, 6400, 9216, 16384, 24576, 36864)
"""Latent pixels of 320 x 320 to 1536 x 1536."""
_ROWS = (1, 2, 4, 8, 16, 32)


def _lattice(seconds: Callable[[int, int], float]) -> list[StepPoint]:
    return [StepPoint(p, r, round(seconds(p, r), 9)) for p, r in product(_PIXELS, _ROWS)]


def unet_teraflop(pixels: int) -> float:
    """One Stable Diffusion 1.x U-Net row: 0.80 TFLOP at 512 x 512, of which 0.12 grow squared.

    The squared part is self-attention, ``4 N^2 d`` a block: five blocks of N = 4096, d = 320 and
    five of N = 1024, d = 640 at 512 x 512.
    """
    scale = pixels / 4096
    return 0.68 * scale + 0.12 * scale**2


# Milliseconds of one U-Net row of 512 x 512 in a forward of so many rows: fast_unet.py's kernels
# with flash attention, as measured on an H200; and what cuDNN's attention, timed shape by shape in
# the same session, takes less (2 and 16 rows; between them by a straight line, beyond as at 16).
_MEASURED_MS = {2: 3.48, 4: 2.79, 8: 2.52, 16: 2.47, 32: 2.39}
_CUDNN_LESS_MS = ((2, 0.375), (16, 0.353))


def _h200_seconds(rows: float) -> float:
    """Return the seconds of a forward of ``rows`` rows of 512 x 512; ``rows`` may be a fraction."""
    (low, less_at_low), (high, less_at_high) = _CUDNN_LESS_MS
    known = {}
    for count, milliseconds in _MEASURED_MS.items():
        share = min(1.0, (count - low) / (high - low))
        less = less_at_low + share * (less_at_high - less_at_low)
        known[count] = count * (milliseconds - less) / 1000
    counts = sorted(known)
    # The piece that holds the rows; the first and the last go on beyond their ends.
    i = next((i for i, count in enumerate(counts[1:-1]) if rows <= count), len(counts) - 2)
    first, second = counts[i], counts[i + 1]
    slope = (known[second] - known[first]) / (second - first)
    return known[first] + slope * (rows - first)


def h200() -> CostTable:
    """Return what the fast forwards reach on an H200, from measured forwards at 512 x 512.

    Another size counts as so many rows of 512 x 512 as its arithmetic is.
    """

    def seconds(pixels: int, rows: int) -> float:
        return _h200_seconds(rows * unet_teraflop(pixels) / unet_teraflop(4096))

    return CostTable(
        points=_lattice(seconds),
        encode=ImageCost(0.0005, 0.0043 / 4096),
        decode=ImageCost(0.0005, 0.0083 / 4096),
        step_overhead=0.0003,
        provenance=Provenance(
            "h200",
            "an H200, 27 November 2026, fp16, 512 x 512: Triton norms on channels-last, captured; "
            "3.48, 2.79, 2.52, 2.47 and 2.39 ms a row at 2, 4, 8, 16 and 32 rows with flash "
            "attention; encode 4.8 and decode 8.8 ms",
            (
                "less what cuDNN's attention takes less, measured by shape: 0.375 ms a row at 2 "
                "rows, 0.353 at 16 (not measured in the whole forward)",
                "one row, never measured, lies on the line through 2 and 4",
                "other sizes are not measured: a U-Net row is 0.68 s + 0.12 s^2 TFLOP, s = latent "
                "pixels / 4096, and costs as many rows of 512 x 512 as that is of 0.80",
                "VAE linear in pixels, plus 0.5 ms",
                "0.3 ms a step outside the U-Net, not measured",
            ),
        ),
    )


def linear(row_seconds: float = 0.005) -> CostTable:
    """No batch gains anything: ``row_seconds`` for each row of 512 x 512, in proportion."""
    return CostTable(
        points=_lattice(lambda p, r: row_seconds * r * p / 4096),
        encode=ImageCost(0.0, row_seconds / 4096),
        decode=ImageCost(0.0, 2 * row_seconds / 4096),
        provenance=Provenance(
            "linear",
            "a shape, not a device",
            (
                f"a step takes {row_seconds} s for each row of 4096 latent pixels, in proportion",
                "encode costs one such row, decode two; no overhead",
            ),
        ),
    )


def two_cores(row_seconds: float = 0.25, fixed_share: float = 0.05) -> CostTable:
    """A placeholder for a small CPU: nearly linear, with a little to gain for small pictures."""
    fixed = fixed_share * row_seconds
    return CostTable(
        points=_lattice(lambda p, r: fixed + row_seconds * r * p / 4096),
        encode=ImageCost(0.0, 2 * row_seconds / 4096),
        decode=ImageCost(0.0, 4 * row_seconds / 4096),
        step_overhead=0.0005,
        provenance=Provenance(
            "two_cores",
            "a placeholder given as parameters, not measured: replace it with a measured table",
            (
                f"a step takes {fixed:g} s plus {row_seconds} s for each row of 4096 latent pixels",
                "encode costs two such rows, decode four; 0.5 ms a step outside the U-Net",
            ),
        ),
    )


TABLES: dict[str, Callable[[], CostTable]] = {
    "h200": h200,
    "linear": linear,
    "two_cores": two_cores,
}


def load_table(name: str) -> CostTable:
    """A table of ``cost_tables/`` by its name, or any JSON file by its path."""
    path = FOLDER / f"{name}.json"
    return CostTable.load(path if path.is_file() else Path(name))


def write_tables() -> None:
    for name, make in TABLES.items():
        make().save(FOLDER / f"{name}.json")
