"""The tiers of tests: what each takes, and that continuous integration takes every slow group."""

from __future__ import annotations

import re

import pytest
from hypothesis import settings

from tests.server.server_process import ROOT
from tests.tiers import SLOW_GROUPS

pytest_plugins = ["pytester"]

PLAIN, PROCESS, CONTRACT, KILL, WEIGHTS = "plain", "process", "contract", "kill", "weights"
NUMBERS = "numbers"
LONG = pytest.mark.slow("release")  # each collects a suite of its own


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """A suite with a test of each tier."""
    pytester.makeconftest("from tests.tiers import *")
    pytester.syspathinsert(ROOT)
    pytester.makepyfile(
        """
        import pytest
        from hypothesis import given, settings, strategies

        def test_plain(): pass

        @given(strategies.none())
        def test_numbers(nothing): print(f"{settings.default.max_examples} examples")

        @pytest.mark.process
        def test_process(): pass

        @pytest.mark.slow("kill")
        def test_kill(): pass

        @pytest.mark.slow("weights")
        def test_weights(): pass
        """
    )
    folder = pytester.mkdir("contract")
    (folder / "test_more.py").write_text("def test_contract(): pass\n")
    return pytester


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ([], {PLAIN, NUMBERS, PROCESS, CONTRACT}),
        (["--fast"], {PLAIN, NUMBERS}),
        pytest.param(["--slow", "kill"], {PLAIN, NUMBERS, PROCESS, CONTRACT, KILL}, marks=LONG),
        pytest.param(["--only-slow", "weights"], {WEIGHTS}, marks=LONG),
        pytest.param(["--only-slow", "properties"], {NUMBERS}, marks=LONG),
        pytest.param(
            ["--slow", "all"], {PLAIN, NUMBERS, PROCESS, CONTRACT, KILL, WEIGHTS}, marks=LONG
        ),
    ],
)
def test_a_tier_takes_its_own(suite: pytest.Pytester, options: list[str], chosen: set[str]) -> None:
    done = suite.inline_run(*options, "-p", "no:cacheprovider")
    passed, skipped, failed = done.listoutcomes()
    assert {report.nodeid.rpartition("test_")[2] for report in passed} == chosen
    assert not skipped
    assert not failed


@pytest.mark.parametrize(
    ("options", "examples"), [([], 20), (["--slow", "kill"], 20), (["--slow", "properties"], 200)]
)
def test_properties_are_looked_at_for_long_in_their_group_alone(
    suite: pytest.Pytester, options: list[str], examples: int
) -> None:
    before = settings.get_current_profile_name()
    done = suite.runpytest_inprocess("-s", "-k", "numbers", *options, "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines([f"*{examples} examples*"])
    assert settings.get_current_profile_name() == before


def test_a_group_that_does_not_exist_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.tiers import *")
    pytester.syspathinsert(ROOT)
    pytester.makepyfile("import pytest\n@pytest.mark.slow('sloth')\ndef test_it(): pass\n")
    done = pytester.runpytest_inprocess()
    assert done.ret is pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("group", SLOW_GROUPS)
def test_continuous_integration_takes_every_slow_group_in_turn(group: str) -> None:
    (groups,) = re.findall(r"^groups=\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert group in groups.split()
