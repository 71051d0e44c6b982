"""The plot of latency against offered rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.serving.measures import COMPARED, SizeResult
from scripts.benchmarks.serving.processes import BATCHING, OURS, PLAIN
from scripts.plots import pyplot, save

_COLOURS = {PLAIN: "tab:grey", BATCHING: "tab:orange", OURS: "tab:blue"}


def plot_latency(sizes: Sequence[SizeResult], file: Path) -> None:
    """One panel a picture size: p50 dashed, p95 solid; a point whose p95 is a miss is left out."""
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(6 * len(sizes), 4.2), squeeze=False)
    for axis, result in zip(axes[0], sizes, strict=True):
        for name in COMPARED:
            points = result.points.get(name, [])
            for share, line in (("p95", "-"), ("p50", "--")):
                pairs = [
                    (point.rate, getattr(point, share))
                    for point in points
                    if math.isfinite(getattr(point, share))
                ]
                axis.plot(
                    [rate for rate, _ in pairs],
                    [latency for _, latency in pairs],
                    line,
                    marker="o",
                    markersize=4,
                    color=_COLOURS[name],
                    label=f"{name}, {share}",
                )
        axis.set_title(f"{result.plan.size} x {result.plan.size}")
        axis.set_xlabel("offered rate, requests a second")
        axis.set_ylabel("latency from the scheduled arrival, s")
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, file)
