r"""The weighting syntax of prompts, as A1111's web UI reads it.

    (word)          weight times 1.1; nested brackets multiply
    [word]          weight divided by 1.1
    (word:1.3)      weight times 1.3
    \( \) \[ \] \\  the character itself
    BREAK           in capitals and alone: the rest starts in a new chunk of tokens

An unclosed bracket reaches to the end. A closing bracket without an opening one, and a number that
is none, are text. Here, unlike there, BREAK breaks inside brackets too, and a weight outside
-10..10 is cut to that, because thousands would overflow the text states.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUND = 1.1
SQUARE = 1 / 1.1
MAX_WEIGHT = 10.0

_TOKEN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])
    | (?P<backslash>\\)
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+ | :)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Fragment:
    """A stretch of text of one weight; ``breaks`` says that a new chunk starts before it."""

    text: str
    weight: float = 1.0
    breaks: bool = False


def parse_weights(prompt: str) -> list[Fragment]:
    """The fragments of ``prompt`` in order, neighbours of one weight joined; at least one.

    Any text has a reading: nothing is an error.
    """
    pieces: list[Fragment] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        pieces[start:] = [Fragment(p.text, p.weight * factor, p.breaks) for p in pieces[start:]]

    for token in _TOKEN.finditer(prompt):
        kind, text = token.lastgroup, token.group()
        if kind == "escaped":
            pieces.append(Fragment(token["escaped"]))
        elif kind == "open":
            opened[text].append(len(pieces))
        elif kind == "weight" and opened["("]:
            multiply(opened["("].pop(), float(token["weight"]))
        elif text == ")" and opened["("]:
            multiply(opened["("].pop(), ROUND)
        elif text == "]" and opened["["]:
            multiply(opened["["].pop(), SQUARE)
        elif kind != "backslash":  # A lone backslash escapes nothing and is dropped.
            parts = _BREAK.split(text)
            pieces += [Fragment(part, breaks=i > 0) for i, part in enumerate(parts)]
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        for start in opened[bracket]:
            multiply(start, factor)
    return _joined(pieces)


def _joined(pieces: list[Fragment]) -> list[Fragment]:
    """Neighbours of equal weight as one fragment, empty ones dropped, weights in bounds."""
    joined: list[Fragment] = []
    breaks = False
    for piece in pieces:
        breaks = breaks or piece.breaks
        if not piece.text:
            continue
        weight = min(max(piece.weight, -MAX_WEIGHT), MAX_WEIGHT)
        last = joined[-1] if joined else None
        if last is not None and last.weight == weight and not breaks:
            joined[-1] = Fragment(last.text + piece.text, weight, last.breaks)
        else:
            joined.append(Fragment(piece.text, weight, breaks))
        breaks = False
    if breaks and joined:
        joined.append(Fragment("", 1.0, True))
    return joined or [Fragment("")]


def without_weights(prompt: str) -> str:
    """The words alone, for a reader that knows no weights."""
    fragments = parse_weights(prompt)
    return "".join(("\n" if f.breaks else "") + f.text for f in fragments).strip()
