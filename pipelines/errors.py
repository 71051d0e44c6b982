"""Errors of the engine.

GenerationError
+-- EngineRefused            the request never entered (``retry_after`` seconds)
|   +-- EngineBusy           the queue is full, or too long for it to be done in time
|   |   +-- TooManyTogether  of its batch alone, which will not fit later either
|   +-- EngineDraining       the server is shutting down
|   +-- EngineDead           the engine's thread has died
|   +-- EngineStalled        what it does now does not end
|   +-- RequestTooLong       it alone would take longer than it is allowed
+-- DeadlineExceeded         it took longer than it was allowed
+-- GenerationCancelled      its caller withdrew it
+-- GenerationFailed         it went wrong, alone or with the engine
"""

from __future__ import annotations

import math


class GenerationError(Exception):
    """Any reason for which a request ends without a picture."""


class EngineRefused(GenerationError):
    """The engine does not take the request; ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineBusy(EngineRefused):
    """The queue is full, or so long that the request could not be done in time."""


class TooManyTogether(EngineBusy):
    """The images that were asked for together are too many, whatever else there is to do."""


class EngineDraining(EngineRefused):
    """The server is shutting down and takes no new work."""


class EngineDead(EngineRefused):
    """The engine's thread has ended unexpectedly."""


class EngineStalled(EngineRefused):
    """The engine's present work takes far longer than predicted, and may never end."""


class RequestTooLong(EngineRefused):
    """The request alone is predicted to take longer than it is allowed; waiting does not help.

    ``seconds`` is the prediction, ``allowed`` the limit.
    """

    def __init__(self, what: str, seconds: float, allowed: float) -> None:
        about = math.ceil(seconds)
        self.what = what
        super().__init__(f"{what} takes about {about} s here, over the limit of {allowed:g} s")
        self.seconds = seconds
        self.allowed = allowed

    def __reduce__(self) -> tuple[type[RequestTooLong], tuple[str, float, float]]:
        """Let it travel between processes."""
        return type(self), (self.what, self.seconds, self.allowed)


class DeadlineExceeded(GenerationError):
    """The request did not finish in the time it was allowed."""


class GenerationCancelled(GenerationError):
    """The caller withdrew the request."""


class GenerationFailed(GenerationError):
    """The request went wrong: it alone, or the engine with all that it had."""


def as_failure(error: Exception) -> GenerationError:
    """Return any error as one of ours; what it says of the inside stays in the log.

    Its traceback is taken from it: log it before.
    """
    if isinstance(error, GenerationError):
        return error
    failure = GenerationFailed(f"generation failed: {type(error).__name__}")
    # Without its frames. They hold what the failed unit had on the device and the request's own
    # handle, which holds the failure: a cycle, so that gigabytes would wait for the collector.
    failure.__cause__ = error.with_traceback(None)
    return failure
