"""Plots, drawn where there is no display."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

__all__ = ["pyplot", "save"]


def save(figure: Figure, file: Path) -> None:
    """Write a figure to a file, whose folder is made, and let go of it."""
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
