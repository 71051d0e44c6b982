r"""The weighting syntax: A1111's own published cases, its rules, and any text at all."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prompt.weights import (
    MAX_WEIGHT,
    Fragment,
    count_breaks,
    parse_weights,
    without_weights,
)


def pairs(prompt: str) -> list[tuple[str, float]]:
    return [(f.text, pytest.approx(f.weight)) for f in parse_weights(prompt)]


GOLDEN = [
    # The cases that A1111 documents of its own parser.
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.5730000000000004),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641000000000006),
            (".", 1.1),
        ],
    ),
    # Its rules.
    ("(word:1.3)", [("word", 1.3)]),
    ("(word: 1.3 )", [("word", 1.3)]),
    ("(word:.5)", [("word", 0.5)]),
    ("(word:+2.)", [("word", 2.0)]),
    ("(word:-1)", [("word", -1.0)]),
    ("(word:0)", [("word", 0.0)]),
    ("[word]", [("word", 1 / 1.1)]),
    ("[[word]]", [("word", 1 / 1.21)]),
    ("[unbalanced", [("unbalanced", 1 / 1.1)]),
    ("((a) b", [("a", 1.21), (" b", 1.1)]),
    ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
    ("(a [b])", [("a ", 1.1), ("b", 1.0)]),
    ("closed)", [("closed)", 1.0)]),
    ("closed]", [("closed]", 1.0)]),
    ("ratio 3:2", [("ratio 3:2", 1.0)]),
    ("word:1.3)", [("word:1.3)", 1.0)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
    (r"(a\):1.2)", [("a)", 1.2)]),
    (r"\\(a)", [("\\", 1.0), ("a", 1.1)]),
    (r"a\b", [("ab", 1.0)]),
    # What crashes A1111 is text here.
    ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ("(a:.)", [("a:.", 1.1)]),
    ("", [("", 1.0)]),
    ("()", [("", 1.0)]),
]


@pytest.mark.parametrize(("prompt", "want"), GOLDEN)
def test_golden_cases(prompt: str, want: list[tuple[str, float]]) -> None:
    assert pairs(prompt) == want
    assert not any(fragment.breaks for fragment in parse_weights(prompt))


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("a BREAK b", [Fragment("a"), Fragment("b", breaks=True)]),
        ("a\nBREAK\nb", [Fragment("a"), Fragment("b", breaks=True)]),
        ("BREAK b", [Fragment("b", breaks=True)]),
        ("a BREAK", [Fragment("a"), Fragment("", breaks=True)]),
        ("a BREAKFAST break b", [Fragment("a BREAKFAST break b")]),
        ("(a BREAK b:2)", [Fragment("a", 2.0), Fragment("b", 2.0, breaks=True)]),
        ("a BREAK (b:2)", [Fragment("a"), Fragment("b", 2.0, breaks=True)]),
    ],
)
def test_break_starts_a_chunk(prompt: str, want: list[Fragment]) -> None:
    assert parse_weights(prompt) == want


@pytest.mark.parametrize("prompt", ["(" * 900 + "a", "(a:1e5)", "(a:99999999)", "(a:-5000)"])
def test_weights_stay_in_bounds(prompt: str) -> None:
    assert all(abs(f.weight) <= MAX_WEIGHT for f in parse_weights(prompt))


def test_words_without_weights() -> None:
    assert without_weights(r"a (red:1.4) [house], \(old\) BREAK snow") == (
        "a red house, (old)\nsnow"
    )


@given(st.text(alphabet="ab ()[]\\:.1-BREAK", max_size=60))
def test_any_text_has_a_reading(prompt: str) -> None:
    fragments = parse_weights(prompt)
    assert fragments
    assert all(abs(f.weight) <= MAX_WEIGHT for f in fragments)


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\"), max_size=60))
def test_text_without_brackets_is_itself(prompt: str) -> None:
    if "BREAK" not in prompt:
        assert parse_weights(prompt) == [Fragment(prompt)]


def seconds_of(prompt: str) -> float:
    """The least CPU time of three readings."""
    spent = []
    for _ in range(3):
        started = time.thread_time()
        parse_weights(prompt)
        spent.append(time.thread_time() - started)
    return min(spent)


@pytest.mark.parametrize(
    "prompt",
    [
        lambda n: "(" * n + ":" * n,
        lambda n: "[a" * n,
        lambda n: "(a" * n,
        lambda n: "(" * n + "a:1.1)" * n,
        lambda n: "x" + " " * 4 * n + "y",
        lambda n: "(a:" + "1" * 2 * n,
        lambda n: "(a:" + " " * 4 * n,
        lambda n: "\\" * n,
    ],
)
def test_reading_takes_time_in_proportion_to_the_text(prompt: Any) -> None:
    """Twelve times the text: about 12 times as long, and 144 times if anything is read twice."""
    assert seconds_of(prompt(6000)) < 60 * max(seconds_of(prompt(500)), 1e-5)


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("(x:1e999)", [("x:1e999", 1.1)]),
        ("(x:nan)", [("x:nan", 1.1)]),
        ("(x:inf) y", [("x:inf", 1.1), (" y", 1.0)]),
        ("(x:" + "9" * 400 + ") y", [("x:" + "9" * 400, 1.1), (" y", 1.0)]),
        ("((x:" + "9" * 300 + "):" + "9" * 300 + ")", [("x", MAX_WEIGHT)]),
        ("(((x:" + "9" * 300 + "):" + "9" * 300 + "):0)", [("x", 0.0)]),
        ("(((x:-" + "9" * 300 + "):" + "9" * 300 + "):" + "9" * 300 + ")", [("x", -MAX_WEIGHT)]),
    ],
)
def test_no_weight_is_infinite_or_no_number(prompt: str, want: list[tuple[str, float]]) -> None:
    assert pairs(prompt) == want
    assert all(math.isfinite(fragment.weight) for fragment in parse_weights(prompt))


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("a cat", 0),
        ("BREAK", 1),
        ("a BREAK b, BREAK(c BREAK d:1.2)", 3),
        ("BREAK " * 333, 333),
        ("BREAKFAST break _BREAK BRE\\\\AK", 0),
        (r"\BREAK", 1),
    ],
)
def test_breaks_are_counted_as_they_are_read(prompt: str, count: int) -> None:
    assert count_breaks(prompt) == count


def test_brackets_of_two_kinds_may_cross() -> None:
    assert pairs("(a [b) c]") == [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]
