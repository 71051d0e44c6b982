"""The tiers of tests: what each takes, and that continuous integration takes every slow group."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.server.server_process import ROOT
from tests.tiers import SLOW_GROUPS


def collected(*options: str) -> list[str]:
    """Return the names of the tests of a few modules that ``options`` select."""
    modules = ["tests/scripts/test_kill_test.py", "tests/pipelines/test_engine_crowd.py"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *options, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return re.findall(r"^tests/\S+", done.stdout, re.MULTILINE)


def test_each_tier_takes_its_own() -> None:
    default, fast = collected(), collected("--fast")
    kill, with_kill = collected("--only-slow", "kill"), collected("--slow", "kill")
    assert set(kill) == {
        f"tests/scripts/test_kill_test.py::test_killed_three_times_under_load[{kind}]"
        for kind in ("sqlite", "postgresql")
    }
    assert set(fast) <= set(default)
    assert set(with_kill) == set(default) | set(kill)
    assert set(collected("--slow", "all")) > set(with_kill)


@pytest.mark.parametrize("group", SLOW_GROUPS)
def test_continuous_integration_takes_every_slow_group_in_turn(group: str) -> None:
    (groups,) = re.findall(r"^groups=\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert group in groups.split()
