"""Moderation of finished images that the safety checker finds near its concepts."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageFilter

from pipelines.errors import GenerationFailed
from pipelines.request import Pixels
from server.errors import ImageWithheld, SafetyCheckHangs

logger = logging.getLogger(__name__)

BLUR_SHARE = 1 / 12
"""The blur's radius as a share of the longer side: shapes are gone, the colours remain."""


class Scorer(Protocol):
    """The part of `pipelines.safety_check.SafetyCheck` that is needed here."""

    def score(self, picture: Pixels) -> float: ...

    @property
    def obstacle(self) -> str | None: ...

    @property
    def alive(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class SafetyPolicy:
    """``mode`` is for pictures whose score is above ``threshold``."""

    mode: Literal["blur", "block"]
    threshold: float
    scorer: Scorer

    @property
    def obstacle(self) -> str | None:
        """Say that the check hangs, or None."""
        return self.scorer.obstacle

    @property
    def alive(self) -> bool:
        return self.scorer.alive

    def review(self, picture: Pixels, request_id: str) -> tuple[Pixels, bool]:
        """Return the image to hand out, and whether it was blurred. Blocks; logs the score.

        Raises ImageWithheld, SafetyCheckHangs, or GenerationFailed where there is no score.
        """
        try:
            score = self.scorer.score(picture)
        except TimeoutError as error:
            raise SafetyCheckHangs from error
        if not math.isfinite(score):  # NaN is above no threshold
            message = f"the safety check gave no score: {score}"
            # A batch whose other images came leaves out why this one did not.
            logger.error(message, extra={"fields": {"request_id": request_id}})
            raise GenerationFailed(message)
        found = score > self.threshold
        done = self.mode if found else "passed"
        fields = {
            "request_id": request_id,
            "score": score,
            "threshold": self.threshold,
            "outcome": done,
        }
        logger.info("safety", extra={"fields": fields})
        if not found:
            return picture, False
        if self.mode == "block":
            raise ImageWithheld
        return blurred(picture), True


def blurred(picture: Pixels) -> Pixels:
    """The picture, of the same size, so blurred that nothing in it can be made out."""
    radius = max(picture.shape) * BLUR_SHARE
    image = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, dtype=np.uint8)
