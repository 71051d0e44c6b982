"""The scheduler's refusals as errors that a caller understands."""

from __future__ import annotations

import math

from pipelines.errors import EngineBusy, EngineRefused, RequestTooLong, TooManyTogether
from pipelines.request import ClipGuidancePreset, GenerationRequest
from pipelines.scheduler.work import Refusal, TooLong


def refused(refusal: Refusal | TooLong, request: GenerationRequest) -> EngineRefused:
    """Return the error of a request that is not taken."""
    if isinstance(refusal, Refusal):
        kind = TooManyTogether if refusal.together else EngineBusy
        return kind(refusal.reason, retry_after=max(1, math.ceil(refusal.retry_after)))
    what = f"{request.width} x {request.height} at {request.steps} steps"
    if request.clip_guidance is not ClipGuidancePreset.NONE:
        what += f" with clip_guidance_preset {request.clip_guidance}"
    return RequestTooLong(what, refusal.seconds, refusal.allowed)
