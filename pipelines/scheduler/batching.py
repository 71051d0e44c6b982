"""Groups of requests that can share a U-Net forward, and limits on its rows. No torch here.

Only requests of one `GroupKey` can share a U-Net forward. What is packed is rows, not requests: a
request at cfg_scale 0 or 1 needs one row of the U-Net, any other two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOKEN_PIXELS = 3
"""Latent pixels that take as much of a step's memory as a token of text. In half precision the keys
and values of all blocks of Stable Diffusion 1.5 are 2 * 12,480 * 2 bytes a token and row, 50 KB; a
latent pixel takes 17 KB of a row (`scripts/measure_memory`: 1,170 MiB for 2 rows of 192 x 192)."""
FREE_TOKENS = 2 * 77
"""Of a text, which count nothing: usual texts take a few hundredths of a step."""


@dataclass(frozen=True, order=True)
class GroupKey:
    """The facts in which two requests must agree to share a forward.

    ``height`` and ``width`` are those of the latents, ``text_tokens`` the length of the text
    states, ``tile`` whether convolutions pad circularly.
    """

    height: int
    width: int
    text_tokens: int
    tile: bool

    @property
    def latent_pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class StepLimits:
    """The most that one step may hold: U-Net rows, and latent pixels over all rows, to which a long
    text adds.

    ``buckets`` are the numbers of rows that steps are padded to, empty for no padding. Padding
    counts: a step holds no more rows than a bucket that is within the limits. With ``alone`` no
    two requests share a step.
    """

    max_rows: int = 16
    max_pixels: int = 16 * 64 * 64
    buckets: Sequence[int] = ()
    alone: bool = False

    def rows_for(self, key: GroupKey) -> int:
        """The rows a step of this group may hold; always enough for one request."""
        pixels = key.latent_pixels + TOKEN_PIXELS * max(0, key.text_tokens - FREE_TOKENS)
        rows = max(2, min(self.max_rows, self.max_pixels // pixels))
        return max((b for b in self.buckets if 2 <= b <= rows), default=rows)

    def padded(self, rows: int) -> int:
        """Return the rows that a step of ``rows`` runs."""
        return pad_rows(rows, self.buckets)


def guidance_rows(cfg_scale: float) -> int:
    """U-Net rows of a request: at 0 the unconditional alone, at 1 the conditional alone."""
    return 1 if cfg_scale in (0.0, 1.0) else 2


def pad_rows(rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds ``rows``; ``rows`` itself where none does."""
    return min((b for b in buckets if b >= rows), default=rows)
