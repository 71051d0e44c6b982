r"""The weighting syntax of prompts, as A1111's web UI reads it.

    (word)          weight times 1.1; nested brackets multiply
    [word]          weight divided by 1.1
    (word:1.3)      weight times 1.3
    \( \) \[ \] \\  the character itself
    BREAK           in capitals and alone: the rest starts in a new chunk of tokens

An unclosed bracket reaches to the end. A closing bracket without an opening one, and a number that
is none or too large for a float, are text. Here, unlike there, BREAK breaks inside brackets too,
and a weight outside -10..10 is cut to that, because thousands would overflow the text states.

Reading takes time in proportion to the text, whatever it is: the patterns never go back over what
they have read, and a bracket's weight is looked up where it opens instead of multiplied into all
that it holds.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ROUND = 1.1
SQUARE = 1 / 1.1
MAX_WEIGHT = 10.0

_TOKEN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])
    | (?P<backslash>\\)
    | (?P<open>[(\[])
    | (?P<colon>:\s*+(?P<weight>[+-]?+(?:\d++(?:\.\d*+)?+|\.\d++))\s*+)\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]++ | :)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Fragment:
    """A stretch of text of one weight; ``breaks`` new chunks start before it."""

    text: str
    weight: float = 1.0
    breaks: int = 0


class _Token(NamedTuple):
    """``text`` as it is read; a ``bracket`` that opens or closes, which is text where it is alone.

    ``factor`` is what a closing bracket multiplies with.
    """

    text: str
    bracket: str = ""
    factor: float = 1.0
    breaks: bool = False


def parse_weights(prompt: str) -> list[Fragment]:
    """Return the fragments of ``prompt`` in order, neighbours of one weight joined; at least one.

    Any text has a reading: nothing is an error.
    """
    tokens = list(_tokens(prompt))
    factors = _factors(tokens)
    pieces: list[tuple[str, float, bool]] = []
    products, squares = [1.0], 0  # of the open round brackets, innermost last; open square ones
    for place, token in enumerate(tokens):
        if place not in factors:
            weight = _bounded(products[-1] * SQUARE**squares)
            pieces.append((token.text, weight, token.breaks))
        elif token.bracket == "(":
            products.append(_finite(products[-1] * factors[place]))
        elif token.bracket == ")":
            products.pop()
        else:
            squares += 1 if token.bracket == "[" else -1
    return _joined(pieces)


def count_breaks(prompt: str) -> int:
    """Return how many times BREAK stands in ``prompt`` as `parse_weights` reads it."""
    return sum(token.breaks for token in _tokens(prompt))


def without_weights(prompt: str) -> str:
    """Return the words alone, for a reader that knows no weights."""
    fragments = parse_weights(prompt)
    return "".join(("\n" if f.breaks else "") + f.text for f in fragments).strip()


def _tokens(prompt: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(prompt):
        kind, text = found.lastgroup, found.group()
        if kind == "escaped":
            yield _Token(found["escaped"])
        elif kind == "open":
            yield _Token(text, text)
        elif kind == "close":
            yield _Token(text, text, ROUND)
        elif kind == "colon":
            factor = float(found["weight"])
            if math.isfinite(factor):
                yield _Token(text, ")", factor)
            else:
                yield _Token(found["colon"])
                yield _Token(")", ")", ROUND)
        elif kind == "text":  # A lone backslash escapes nothing and is dropped.
            parts = _BREAK.split(text)
            for i, part in enumerate(parts):
                if i > 0:
                    part = part.lstrip()
                if i < len(parts) - 1:
                    part = part.rstrip()
                yield _Token(part, breaks=i > 0)


def _factors(tokens: Sequence[_Token]) -> dict[int, float]:
    """Return the factor of every bracket that is no text, by the places of both its ends."""
    opened: dict[str, list[int]] = {")": [], "]": []}
    factors: dict[int, float] = {}
    for place, token in enumerate(tokens):
        if token.bracket in ("(", "["):
            opened[")" if token.bracket == "(" else "]"].append(place)
            factors[place] = ROUND
        elif token.bracket and opened[token.bracket]:
            factors[place] = factors[opened[token.bracket].pop()] = token.factor
    return factors


def _finite(product: float) -> float:
    """Return ``product`` within the largest floats: infinity times 0 would be no number."""
    return min(max(product, -sys.float_info.max), sys.float_info.max)


def _bounded(weight: float) -> float:
    return min(max(weight, -MAX_WEIGHT), MAX_WEIGHT)


def _joined(pieces: Sequence[tuple[str, float, bool]]) -> list[Fragment]:
    """Return neighbours of equal weight as one fragment, without empty ones."""
    runs: list[tuple[list[str], float, int]] = []
    breaks = 0
    for text, weight, breaks_here in pieces:
        breaks += breaks_here
        if not text:
            continue
        if runs and runs[-1][1] == weight and not breaks:
            runs[-1][0].append(text)
        else:
            runs.append(([text], weight, breaks))
        breaks = 0
    if breaks:
        runs.append(([], 1.0, breaks))
    fragments = [Fragment("".join(texts), weight, breaks) for texts, weight, breaks in runs]
    return fragments or [Fragment("")]
