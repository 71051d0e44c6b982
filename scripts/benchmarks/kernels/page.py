"""The page of what was counted, and what follows from it."""
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.benchmarks.kernels.counting import Count

CATEGORIES = ("convolution", "product", "attention", "norm", "elementwise", "copy")
ARITHMETIC = CATEGORIES[:3]


@dataclass(frozen=True)
class Case:
    """A forward by diffusers' modules and by our own, with either geometry of the kernels."""

    name: str
    modules: Count
    proven: Count
    following: Count

    @property
    def counts(self) -> tuple[Count, Count, Count]:
        """The three, from the old to the new."""
        return self.modules, self.proven, self.following


def table(case: Case) -> Iterator[str]:
    """A row a category: launches and megabytes of each path."""
    yield f"### {case.name}"
    yield ""
    yield "| | modules | | `proven` | | `next` | |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    yield "| | kernels | MB | kernels | MB | kernels | MB |"
    for category in CATEGORIES:
        cells = [f"{c.launches[category]} | {c.moved[category] / 1e6:,.0f}" for c in case.counts]
        yield f"| {category} | {' | '.join(cells)} |"
    cells = [f"**{c.launches.total()}** | **{c.moved.total() / 1e6:,.0f}**" for c in case.counts]
    yield f"| all | {' | '.join(cells)} |"
    cells = [
        f"{sum(n for k, n in c.launches.items() if k not in ARITHMETIC)} | "
        f"{sum(n for k, n in c.moved.items() if k not in ARITHMETIC) / 1e6:,.0f}"
        for c in case.counts
    ]
    yield f"| of it no arithmetic | {' | '.join(cells)} |"
    yield ""


_MEASURED = {2: (1.8, 1.6, 1.0), 16: (9.1, 7.7, 4.9)}
"""Milliseconds of convolutions, products and attention (cuDNN) of a forward on an H200, by rows."""

_BANDWIDTH = 3.65e12
"""Bytes a second: 85 % of what a copy moved on the H200."""

_LAUNCH = 2e-6
"""Seconds from one kernel of a graph to the next that are not its memory's."""

_UPSAMPLING_SAVES = {2: 0.12, 16: 0.94}
"""Milliseconds: 38 of 803 GFLOP a row, at the rate that convolutions had there."""


def predicted(count: Count, rows: int, folded: bool) -> float:
    """Milliseconds of a U-Net forward on an H200."""
    others = [k for k in CATEGORIES if k not in ARITHMETIC]
    moved = sum(count.moved[k] for k in others) / _BANDWIDTH
    launched = sum(count.launches[k] for k in others) * _LAUNCH
    saved = _UPSAMPLING_SAVES[rows] if folded else 0.0
    return sum(_MEASURED[rows]) - saved + (moved + launched) * 1e3


def prediction(unets: Sequence[tuple[int, Case]]) -> Iterator[str]:
    """What the counts let expect of a U-Net forward."""
    yield "## Predicted from them, not measured"
    yield ""
    yield (
        f"What no kernel of ours changes as it was measured on an H200; for the rest its bytes at "
        f"{_BANDWIDTH / 1e12} TB/s and {_LAUNCH * 1e6:.0f} us a kernel; `next` saves 5 of 9 "
        "products of each up-sampling. The experiment that `proven` comes from ran at about 6.0 "
        "and 32 ms there: its statistics are slower than its bytes."
    )
    yield ""
    yield "| U-Net on an H200, ms | `proven` | `next` | target |"
    yield "|---|---:|---:|---:|"
    for (rows, case), target in zip(unets, (5.8, 30), strict=True):
        old, new = (
            predicted(count, rows, folded)
            for count, folded in ((case.proven, False), (case.following, True))
        )
        yield f"| {rows} rows | {old:.1f} | {new:.1f} | {target} |"
    yield ""


INTRODUCTION = """# Kernels of a forward: counted, not measured

`scripts/count_kernels` printed this page, on meta tensors, without a card: Stable Diffusion 1.5 in
half precision, pictures of 512 x 512. Every kernel reads its arguments and writes its result once;
what a library splits or pads is not in it. *modules* are diffusers' with fused projections, as they
ran before; `proven` and `next` are our forwards with either geometry of the Triton kernels
(`models/acceleration/triton_kernels.py`). `proven` serves.

`scripts/compile_kernels` compiles every specialisation for sm_80, 86, 89 and 90 without a card: 51
for each, none of which spills a register. Accesses are of 16 bytes but for layer norms of 320
channels in `proven` and small pictures with groups of 20 or 60 channels in `next` (8 bytes), and
for what is only a number a channel.

## Counts
"""

LEFT = """## What is left, with what it should gain

| | predicted gain at 16 rows, H200 |
|---|---|
| GEGLU in the product's own epilogue: no 8 C channels written and read again | 1.0 ms, and a product of our own to keep as fast as cuBLAS |
| residual sums of the transformers in the product's epilogue (`beta` 1) | 0.4 ms |
| the text's keys and values once a request, not a step: one product of 3.0 GFLOP a row now | 0.1 ms; at 2 rows 0.03; 3.8 MB a row to keep and to gather |
| the sinusoids of all timesteps from a table | 5 launches: 0.01 ms |
| the text encoder as a graph | 2 to 3 ms of a request whose prompt is new |
"""


def page(cases: Sequence[Case], unets: Sequence[tuple[int, Case]]) -> str:
    """Return the whole page, in Markdown."""
    tables = [line for case in cases for line in table(case)]
    return "\n".join([INTRODUCTION, *tables, *prediction(unets), LEFT])
