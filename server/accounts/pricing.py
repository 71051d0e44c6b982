"""The price of an image, and credits as text. Credits are whole numbers of tenths throughout."""

from __future__ import annotations

from decimal import Decimal

from pipelines.request import MAX_SIDE, MAX_STEPS, MIN_SIDE, MIN_STEPS

MIN_PRICE = 4
MAX_PRICE = 20
_MIN_WORK = MIN_SIDE * MIN_SIDE * MIN_STEPS
_MAX_WORK = MAX_SIDE * MAX_SIDE * MAX_STEPS
MAX_CREDITS = 10**12
"""Tenths that one grant may hold, at most."""


def price(width: int, height: int, steps: int) -> int:
    """Tenths of a credit for one picture of width x height pixels in that many steps.

    0.4 + 1.6 * (w - w_min) / (w_max - w_min) credits, w = width * height * steps over the
    contract's own ranges, rounded to 0.1 (half up), in whole numbers. Work beyond the ranges, which
    other APIs can ask for, costs what their ends do.
    """
    work, span = width * height * steps - _MIN_WORK, _MAX_WORK - _MIN_WORK
    work = min(max(work, 0), span)
    return MIN_PRICE + (2 * (MAX_PRICE - MIN_PRICE) * work + span) // (2 * span)


def price_table() -> str:
    """Prices of some sizes and steps, in credits, as Markdown."""
    steps = (10, 20, 30, 40, 50)
    sizes = ((320, 320), (512, 512), (768, 512), (768, 768), (1024, 1024), (1536, 1024))
    lines = [f"| steps | {' | '.join(map(str, steps))} |", "|---|---|---|---|---|---|"]
    for width, height in (*sizes, (1536, 1536)):
        cells = (credits_text(price(width, height, count)) for count in steps)
        lines.append(f"| {width} x {height} | {' | '.join(cells)} |")
    return "\n".join(lines)


def credits_text(tenths: int) -> str:
    """`104` tenths as `10.4`."""
    sign = "-" if tenths < 0 else ""
    return f"{sign}{abs(tenths) // 10}.{abs(tenths) % 10}"


def parse_credits(text: str) -> int:
    """Tenths from `10` or `10.4`. Raises ValueError that says the rule."""
    most = MAX_CREDITS // 10
    rule = f"{text[:40]!r} is not a number of credits from 0 to {most} in steps of 0.1"
    try:
        credits = Decimal(text.strip())
    except ArithmeticError:
        raise ValueError(rule) from None
    # Compared before anything is computed: 1e999999999 and 1e-999999999 would not come out.
    if not credits.is_finite() or not 0 <= credits <= most:
        raise ValueError(rule)
    steps = credits.quantize(Decimal("0.1"))
    if steps != credits:
        raise ValueError(rule)
    return int(steps * 10)
