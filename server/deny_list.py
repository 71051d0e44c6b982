"""Words that the operator does not take in prompts, from a file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from pipelines.prompt_weights import without_weights


class DenyListError(Exception):
    """The file cannot be read; the message is fit for the operator."""


class DenyList:
    """Phrases, found as whole words whatever their case, accents' encoding, spaces or weights."""

    def __init__(self, phrases: Iterable[str] = ()) -> None:
        self.phrases = tuple(found for phrase in phrases if (found := _normalised(phrase)))
        either = "|".join(re.escape(p) for p in sorted(self.phrases, key=len, reverse=True))
        # Not \b: a phrase may begin or end with a sign that is no letter.
        self._pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)") if either else None

    @classmethod
    def read(cls, path: Path | None) -> DenyList:
        """A phrase a line; empty lines and those that begin with # are left out.

        No path, an empty list. Raises DenyListError.
        """
        if path is None:
            return cls()
        try:
            lines = path.expanduser().read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DenyListError(f"the deny list {path} cannot be read: {error}") from error
        return cls(line for line in lines if not line.lstrip().startswith("#"))

    def find(self, prompt: str) -> str | None:
        """The first phrase that ``prompt`` holds, as it stands in the file but for case."""
        if self._pattern is None:
            return None
        # As written, and as the model reads it: brackets inside a word would hide it.
        for text in (prompt, without_weights(prompt)):
            if found := self._pattern.search(_normalised(text)):
                return found.group()
        return None


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
