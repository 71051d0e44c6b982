"""200 requests at once on 50 credits, to a real server, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benchmarks.spending_crowd import spend_at_once

pytestmark = pytest.mark.process


def test_exactly_what_is_affordable_succeeds(database_url: str, tmp_path: Path) -> None:
    assert spend_at_once(database_url, tmp_path) == {
        "affordable": 125,
        "pictures": 125,
        "refused with 402": 75,
        "other answers": 0,
        "tenths left": 0,
        "tenths still held": 0,
        "problems found by the audit": 0,
    }
