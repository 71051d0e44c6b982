"""Words that the operator does not take in prompts, from a file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from models.clip_words import clip_normalized, clip_words
from pipelines.prompt.weights import without_weights
from server.errors import ConfigurationError

_JOINT = "\0"
"""Stands between two words with no blank between them, so that every word's end can be seen."""


class DenyListError(ConfigurationError):
    """The file cannot be read; the message is fit for the operator."""


class DenyList:
    """Phrases, found as whole words whatever their case, accents' encoding, spaces or weights.

    Words end where the model's tokenizer ends them: at whatever is no letter, an underscore and a
    digit included. A phrase that ends in a digit does not end within a longer number.
    """

    def __init__(self, phrases: Iterable[str] = ()) -> None:
        kept = [phrase for phrase in phrases if phrase.strip()]
        self.phrases = tuple(_folded(phrase) for phrase in kept)
        self._readings = [(form, _either(kept, form)) for form in (_folded, _as_clip)]

    @classmethod
    def read(cls, path: Path | None) -> DenyList:
        """Return the list with a phrase a line, without empty lines and those that begin with #.

        No path, an empty list. Raises DenyListError.
        """
        if path is None:
            return cls()
        try:
            # Editors on Windows begin a file with a byte order mark.
            lines = path.expanduser().read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DenyListError(f"the deny list {path} cannot be read: {error}") from error
        return cls(line for line in lines if not line.lstrip().startswith("#"))

    def find(self, prompt: str) -> str | None:
        """Return the first phrase that ``prompt`` holds, as it stands in the file but for case."""
        if not self.phrases:
            return None
        # As written, and as the model reads it: brackets inside a word would hide it.
        for text in (prompt, without_weights(prompt)):
            for form, either in self._readings:
                if found := either.search(_in_words(form(text))):
                    return found.group().replace(_JOINT, "")
        return None


def _folded(text: str) -> str:
    """Return ``text`` as people read it: full-width letters and ligatures are letters too."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _as_clip(text: str) -> str:
    return " ".join(clip_normalized(text).split())


def _in_words(text: str) -> str:
    """Return ``text`` with a joint between words that touch."""
    pieces: list[str] = []
    last = 0
    for begin, end in clip_words(text):
        pieces.append(text[last:begin] or (_JOINT if pieces else ""))
        pieces.append(text[begin:end])
        last = end
    return "".join(pieces) + text[last:]


def _either(phrases: Iterable[str], form: Callable[[str], str]) -> re.Pattern[str]:
    """Return what finds any of the phrases in a text in words, the longest first."""
    texts = sorted({_in_words(form(phrase)) for phrase in phrases}, key=len, reverse=True)
    return re.compile("|".join(map(_within_edges, texts)))


def _within_edges(phrase: str) -> str:
    before = {"L": rf"(?<![^{_JOINT} ])", "N": rf"(?<!\d{_JOINT})"}
    behind = {"L": rf"(?![^{_JOINT} ])", "N": rf"(?!{_JOINT}\d)"}
    first, last = (unicodedata.category(phrase[place])[0] for place in (0, -1))
    return before.get(first, "") + re.escape(phrase) + behind.get(last, "")
