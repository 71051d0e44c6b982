"""What OpenAI's API tells of a request's size: `usage`, in tokens. Nothing is billed by it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.request import GenerationRequest

_TOKEN = re.compile(r"\w+|[^\w\s]")
_TILE = 64**2


@dataclass(frozen=True)
class Usage:
    """Whole numbers, as clients check: a token of text is a word or a mark, one of an image a tile
    of 64 x 64 pixels, as it is worked on. ``output`` is that of one image."""

    text: int
    image: int
    output: int

    @classmethod
    def of(cls, texts: str, made: GenerationRequest) -> Usage:
        """Return that of a request with these texts, one of whose images is ``made``."""
        tiles = made.width * made.height // _TILE
        return cls(len(_TOKEN.findall(texts)), 0 if made.from_noise else tiles, tiles)

    @classmethod
    def told_in(cls, body: Mapping[str, Any]) -> Usage:
        """Return that of an answer's body."""
        told, count = body["usage"], len(body["data"])
        details = told["input_tokens_details"]
        return cls(details["text_tokens"], details["image_tokens"], told["output_tokens"] // count)

    def told(self, count: int) -> dict[str, Any]:
        """Return what is told of ``count`` images."""
        read, made = self.text + self.image, count * self.output
        return {
            "input_tokens": read,
            "input_tokens_details": {"text_tokens": self.text, "image_tokens": self.image},
            "output_tokens": made,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
            "total_tokens": read + made,
        }
