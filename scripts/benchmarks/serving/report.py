"""The report of a run, in Markdown."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence

import diffusers
import torch

from scripts.benchmarks.serving.measures import COMPARED, Point, Results, Saturation, SizeResult
from scripts.benchmarks.serving.processes import BATCHING, OURS, PLAIN, Model
from scripts.benchmarks.serving.steps import StepCost

_ABOUT = f"""\
One run, one machine, the same weights, dtype and threads for every server, each a process of its
own; the load generator is another. The servers take turns under the same seeded trace. Latency is
counted from the moment a request was due (open loop), so a queue shows; a refusal, an error or a
wrong answer is a miss and counts as infinitely late. In brackets: the ratio to the first server.

- **{PLAIN}**: `serving/baselines/plain_server.py`, one diffusers pipeline, one request at a time.
- **{BATCHING}**: `serving/baselines/batching_server.py`, equal requests (size, steps, strength,
  sampler, guidance scale) that wait together run as one pipeline call, 8 at most.
- **{OURS}**: `img2img serve`, its settings above.

The *mixed* trace: two requests in five are the contract's example (20 steps, image_strength 0.35,
cfg 7), the others choose among eight samplers, 10 to 20 steps, three strengths and four guidance
scales. The *equal* trace: that example alone. Every request has a picture of its own."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def ratio(value: float, base: float, digits: int = 2) -> str:
    """``value`` with its ratio to ``base`` in brackets; a miss as a word."""
    if not math.isfinite(value):
        return "a miss"
    if not math.isfinite(base) or base == 0:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({value / base:.2f})"


def make_report(
    command: str,
    date: str,
    model: Model,
    settings: Mapping[str, str],
    results: Results | None,
    steps: Mapping[int, Sequence[StepCost]],
    profiles: Sequence[Sequence[str]],
    plot: str | None,
    note: str = "",
) -> str:
    chosen = ", ".join(f"IMG2IMG_{k.upper()}={v}" for k, v in settings.items()) or "all defaults"
    lines = [
        "# Serving benchmark",
        "",
        f"    {command}",
        "",
        f"{date}. {platform.machine()}, {os.cpu_count()} cores, "
        f"{model.threads} threads each; model {model.name}, device {model.device}, dtype "
        f"{model.dtype}; torch {torch.__version__}, diffusers {diffusers.__version__}. "
        f"Settings of {OURS}: {chosen}.",
        "",
    ]
    lines += [note, ""] if note else []
    if results is not None:
        lines += [_ABOUT, ""]
        for result in results.sizes:
            lines += _size_lines(result)
        if plot:
            lines += ["## Latency against offered rate", "", f"![latency]({plot})", ""]
        lines += _memory_lines(results) + _health_lines(results) + _exact_lines(results)
    if steps:
        lines += _step_lines(steps)
    if profiles:
        lines += ["## What the time is spent on", ""]
        for profile in profiles:
            lines += ["```", *profile, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _size_lines(result: SizeResult) -> list[str]:
    size = result.plan.size
    lines = [f"## {size} x {size}", ""]
    rows = [_saturation_row("mixed", n, s, result.saturation) for n, s in result.saturation.items()]
    rows += [
        _saturation_row("equal", n, s, result.equal_saturation)
        for n, s in result.equal_saturation.items()
    ]
    base = result.unloaded.get(PLAIN, math.nan)
    alone = ", ".join(f"{n} {ratio(s, base)} s" for n, s in result.unloaded.items())
    lines += [
        f"One example request alone: {alone}.",
        "",
        "Saturated, all requests due at once:",
        "",
    ]
    lines += table(
        ("server", "trace", "requests", "images a second", "CPU seconds an image", "misses"), rows
    )
    if result.points:
        lines += ["Offered at a rate (shares of the first server's images a second):", ""]
        lines += table(
            ("offered, /s", "share", "requests", "server", "p50, s", "p95, s", "misses"),
            [
                _point_row(result, turn, name)
                for turn in range(len(result.plan.shares))
                for name in COMPARED
                if name in result.points
            ],
        )
        late = max(point.late for points in result.points.values() for point in points)
        lines += [f"The load generator sent no request more than {1e3 * late:.0f} ms late.", ""]
    return lines


def _saturation_row(
    mix: str, name: str, saturation: Saturation, all_of_them: Mapping[str, Saturation]
) -> list[str]:
    base = all_of_them.get(PLAIN, saturation)
    return [
        name,
        mix,
        str(saturation.count),
        ratio(saturation.images_per_second, base.images_per_second, 3),
        ratio(saturation.cpu_per_image, base.cpu_per_image),
        _misses(saturation.misses),
    ]


def _point_row(result: SizeResult, turn: int, name: str) -> list[str]:
    point: Point = result.points[name][turn]
    base = result.points.get(PLAIN, result.points[name])[turn]
    return [
        f"{point.rate:.3f}",
        f"{result.plan.shares[turn]:g}",
        str(point.count),
        name,
        ratio(point.p50, base.p50),
        ratio(point.p95, base.p95),
        _misses(point.misses),
    ]


def _misses(misses: Sequence[str]) -> str:
    return f"{len(misses)} ({', '.join(sorted(set(misses)))})" if misses else "0"


def _memory_lines(results: Results) -> list[str]:
    base = results.peak_rss.get(PLAIN, 0) / 2**20
    rows = [[name, ratio(size / 2**20, base, 0)] for name, size in results.peak_rss.items()]
    return ["## Memory", "", *table(("server", "peak resident memory, MiB"), rows)]


def _health_lines(results: Results) -> list[str]:
    if not results.health:
        return []
    rows = [
        [n, str(h.count), str(h.failed), f"{1e3 * h.p50:.1f}", f"{1e3 * h.p99:.1f}"]
        for n, h in results.health.items()
    ]
    return [
        "## The event loop while saturated",
        "",
        "`GET /health/live`, 40 a second, due times as above, while more work waits than is done:",
        "",
        *table(("server", "probes", "failed", "p50, ms", "p99, ms"), rows),
    ]


def _exact_lines(results: Results) -> list[str]:
    if results.exact is None:
        return []
    free, exact = results.exact
    share = exact.images_per_second / (free.images_per_second or math.nan)
    return [
        "## The exact lane",
        "",
        f"`IMG2IMG_BATCH_INVARIANT=true` makes {exact.images_per_second:.3f} images a second "
        f"where the throughput lane makes {free.images_per_second:.3f}: **{100 * share:.0f} %** "
        f"({exact.count} mixed requests of {results.sizes[0].plan.size} x "
        f"{results.sizes[0].plan.size} at once; misses {_misses(exact.misses)}).",
        "",
    ]


def _step_lines(steps: Mapping[int, Sequence[StepCost]]) -> list[str]:
    lines = [
        "## A step outside the U-Net",
        "",
        "The engine in this process, its U-Net replaced by one that does nothing: milliseconds "
        "from its answer to its next call, so planning, gathering, guidance, the sampler's mix and "
        "progress are all in. On a CPU the arithmetic on the latents is a part of it that a GPU "
        "does aside; it grows with the picture.",
        "",
    ]
    for size, costs in steps.items():
        crowds = sorted({cost.requests for cost in costs})
        by_sampler: dict[str, dict[int, StepCost]] = {}
        for cost in costs:
            by_sampler.setdefault(cost.sampler.value, {})[cost.requests] = cost
        lines += [f"{size} x {size}, median (90th percentile):", ""]
        lines += table(
            ("sampler", *(f"{n} request{'s' if n > 1 else ''}, ms" for n in crowds)),
            [
                [name, *(f"{row[n].median:.2f} ({row[n].p90:.2f})" for n in crowds)]
                for name, row in by_sampler.items()
            ],
        )
    return lines
