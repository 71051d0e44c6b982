from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.accounts.pricing import (
    MAX_PRICE,
    MIN_PRICE,
    credits_text,
    parse_credits,
    price,
    price_table,
)

SIDES = st.integers(5, 24).map(lambda n: n * 64)
STEPS = st.integers(10, 50)


@pytest.mark.parametrize(
    ("width", "height", "steps", "tenths"),
    [
        (320, 320, 10, 4),
        (1536, 1536, 50, 20),
        (512, 512, 30, 5),
        (512, 512, 50, 6),
        (768, 768, 30, 6),
        (1024, 1024, 30, 8),
        (1024, 1024, 50, 11),
        (1536, 1536, 10, 7),
        (1536, 1536, 30, 14),
    ],
)
def test_prices(width: int, height: int, steps: int, tenths: int) -> None:
    assert price(width, height, steps) == tenths


@given(SIDES, SIDES, STEPS)
def test_the_price_is_the_formula_rounded_half_up(width: int, height: int, steps: int) -> None:
    low, high = 320 * 320 * 10, 1536 * 1536 * 50
    exact = 4 + 16 * Fraction(width * height * steps - low, high - low)
    assert price(width, height, steps) == (exact + Fraction(1, 2)).__floor__()
    assert MIN_PRICE <= price(width, height, steps) <= MAX_PRICE


@given(SIDES, SIDES, STEPS)
def test_more_work_never_costs_less(width: int, height: int, steps: int) -> None:
    costs = price(width, height, steps)
    assert costs == price(height, width, steps)
    if steps < 50:
        assert price(width, height, steps + 1) >= costs
    if width < 1536:
        assert price(width + 64, height, steps) >= costs


@pytest.mark.parametrize("size", [(256, 320, 10), (320, 320, 1), (320, 320, 10)])
def test_less_work_than_the_contract_knows_costs_its_least(size: tuple[int, int, int]) -> None:
    assert price(*size) == MIN_PRICE


@pytest.mark.parametrize("size", [(1536, 1600, 50), (1536, 1536, 150), (1536, 1536, 50)])
def test_more_work_than_the_contract_knows_costs_its_most(size: tuple[int, int, int]) -> None:
    assert price(*size) == MAX_PRICE


@given(st.integers(0, 10**12))
def test_credits_as_text_and_back(tenths: int) -> None:
    assert parse_credits(credits_text(tenths)) == tenths


@pytest.mark.parametrize(
    ("text", "tenths"), [("10", 100), ("0.4", 4), (" 2.50 ", 25), ("1e2", 1000)]
)
def test_credits_are_read(text: str, tenths: int) -> None:
    assert parse_credits(text) == tenths


@pytest.mark.parametrize("text", ["", "x", "0.05", "-1", "NaN", "Infinity", "1e40", "1,5"])
def test_what_is_no_number_of_credits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"in steps of 0\.1"):
        parse_credits(text)


def test_the_table_in_the_documents_is_that_of_the_code() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "credits.md"
    assert price_table() in page.read_text(encoding="utf-8")


def test_negative_amounts_are_shown_as_such() -> None:
    assert credits_text(-14) == "-1.4"
