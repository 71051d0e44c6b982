"""Cost tables that are given, not measured: shapes to tune a policy on.

Each is made from a few figures that the table itself names, and kept as JSON in
``scripts/cost_tables/``; ``scripts/simulate_load --write-tables`` makes the files again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

from pipelines.cost import CostTable, PictureCost, Provenance, TickPoint

FOLDER = Path(__file__).resolve().parents[1] / "cost_tables"

_PIXELS = (1600, 2304, 4096, 6400, 9216, 16384, 24576, 36864)
"""Latent pixels of 320 x 320 to 1536 x 1536."""
_ROWS = (1, 2, 4, 8, 16, 32)


def _lattice(seconds: Callable[[int, int], float]) -> list[TickPoint]:
    return [TickPoint(p, r, round(seconds(p, r), 9)) for p, r in product(_PIXELS, _ROWS)]


def unet_teraflop(pixels: int) -> float:
    """One Stable Diffusion 1.x U-Net row: 0.80 TFLOP at 512 x 512, of which 0.12 grow squared.

    The squared part is self-attention, ``4 N^2 d`` a block: five blocks of N = 4096, d = 320 and
    five of N = 1024, d = 640 at 512 x 512.
    """
    scale = pixels / 4096
    return 0.68 * scale + 0.12 * scale**2


def h100_like() -> CostTable:
    """An affine tick: a fixed part, then arithmetic at 60 % of 800 TFLOP/s.

    The fixed part is what is left of the published 104.6 it/s (two rows at 512 x 512).
    """
    rate = 0.60 * 800.0
    fixed = 1.0 / 104.6 - 2.0 * unet_teraflop(4096) / rate
    return CostTable(
        points=_lattice(lambda p, r: fixed + r * unet_teraflop(p) / rate),
        encode=PictureCost(0.0005, 1.1 / rate / 4096),
        decode=PictureCost(0.0005, 2.5 / rate / 4096),
        tick_overhead=0.0003,
        provenance=Provenance(
            "h100_like",
            "derived, not measured: stable-fast's published 104.6 it/s for Stable Diffusion 1.5 at "
            "512 x 512, batch 1 (two rows), on an H100; 34.2 TFLOP for a 512 x 512 picture of 19 "
            "evaluations x 2 rows, encode and decode included; 800 TFLOP/s attainable in fp16",
            (
                "a tick costs a fixed part plus arithmetic at 60 % of 800 TFLOP/s (480 TFLOP/s)",
                "the fixed part is what 104.6 it/s leaves: 1 / 104.6 - 2 * 0.80 / 480 = 6.2 ms",
                "a U-Net row is 0.68 s + 0.12 s^2 TFLOP, s = latent pixels / 4096",
                "VAE at 480 TFLOP/s: 1.1 TFLOP to encode, 2.5 to decode at 512 x 512, linear in "
                "pixels, plus 0.5 ms",
                "0.3 ms a tick outside the U-Net (3 % of a two-row tick)",
            ),
        ),
    )


def linear(row_seconds: float = 0.005) -> CostTable:
    """No batch gains anything: ``row_seconds`` for each row of 512 x 512, in proportion."""
    return CostTable(
        points=_lattice(lambda p, r: row_seconds * r * p / 4096),
        encode=PictureCost(0.0, row_seconds / 4096),
        decode=PictureCost(0.0, 2 * row_seconds / 4096),
        provenance=Provenance(
            "linear",
            "a shape, not a device",
            (
                f"a tick takes {row_seconds} s for each row of 4096 latent pixels, in proportion",
                "encode costs one such row, decode two; no overhead",
            ),
        ),
    )


def two_cores(row_seconds: float = 0.25, fixed_share: float = 0.05) -> CostTable:
    """A placeholder for a small CPU: nearly linear, with a little to gain for small pictures."""
    fixed = fixed_share * row_seconds
    return CostTable(
        points=_lattice(lambda p, r: fixed + row_seconds * r * p / 4096),
        encode=PictureCost(0.0, 2 * row_seconds / 4096),
        decode=PictureCost(0.0, 4 * row_seconds / 4096),
        tick_overhead=0.0005,
        provenance=Provenance(
            "two_cores",
            "a placeholder given as parameters, not measured: replace it with a measured table",
            (
                f"a tick takes {fixed:g} s plus {row_seconds} s for each row of 4096 latent pixels",
                "encode costs two such rows, decode four; 0.5 ms a tick outside the U-Net",
            ),
        ),
    )


TABLES: dict[str, Callable[[], CostTable]] = {
    "h100_like": h100_like,
    "linear": linear,
    "two_cores": two_cores,
}


def load_table(name: str) -> CostTable:
    """A table of ``scripts/cost_tables`` by its name, or any JSON file by its path."""
    path = FOLDER / f"{name}.json"
    return CostTable.load(path if path.is_file() else Path(name))


def write_tables() -> None:
    for name, make in TABLES.items():
        make().save(FOLDER / f"{name}.json")
