"""A text as CLIP's tokenizer sees it, without one: its normal form and the ends of its words."""

from __future__ import annotations

import re
import unicodedata

_BLANKS = re.compile(
    "[\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+"
)
_LETTER = r"[^\W\d_]"
_WORD = re.compile(rf"'(?:s|t|re|ve|m|ll|d)|{_LETTER}+|\d|(?:(?!{_LETTER}|\d)\S)+")


def clip_normalized(text: str) -> str:
    """Return ``text`` composed (NFC), every run of blanks as one space, each letter lower-cased.

    Each letter by itself, as the tokenizer does it: no case is folded and none depends on what
    follows.
    """
    composed = _BLANKS.sub(" ", unicodedata.normalize("NFC", text))
    return "".join(letter.lower() for letter in composed)


def clip_words(text: str) -> list[tuple[int, int]]:
    """Return where each of CLIP's words in a text begins and ends, in order.

    A word is a run of letters, one digit, a run of signs, or an English ending such as 's (Radford
    et al. 2021). What merely looks like a number to Unicode, such as a Roman one, is a digit.
    """
    plain = "".join(map(_plain, text))
    return [found.span() for found in _WORD.finditer(plain)]


def _plain(letter: str) -> str:
    """Return what Python's patterns take for the kind that Unicode's categories say."""
    if unicodedata.category(letter)[0] == "N":
        return "0"
    return "!" if "\x1c" <= letter <= "\x1f" else letter
