"""Many requests at once on too few credits, to a real server, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benchmarks.spending_crowd import spend_at_once

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("count", "affordable"),
    [(40, 25), pytest.param(200, 125, marks=pytest.mark.slow("properties"))],
)
def test_exactly_what_is_affordable_succeeds(
    database_url: str, tmp_path: Path, count: int, affordable: int
) -> None:
    """Of 0.4 credits each."""
    assert spend_at_once(database_url, tmp_path, count=count, tenths=4 * affordable) == {
        "affordable": affordable,
        "pictures": affordable,
        "refused with 402": count - affordable,
        "other answers": 0,
        "tenths left": 0,
        "tenths still held": 0,
        "problems found by the audit": 0,
    }
