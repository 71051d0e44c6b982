"""Reasons for which a request gets no image, without HTTP: `server.http.errors` has their statuses.

They are apart from the code that raises them, so that nothing is loaded to name one. The engine's
are in `pipelines.errors`.

ConfigurationError           the settings do not allow to start
+-- DatabaseUnusable         the database's URL or its schema is wrong
InvalidInput                 fields, or the upload, are wrong
ImageError                   the upload is no image to work with
DecodeTimeout                it was not decoded in time
DecodersBusy                 no decoder will be free in time
ImageWithheld                the safety check held the image back
SafetyCheckHangs             the safety check does not answer
DatabaseAway                 the database of accounts cannot be reached; later may help
+-- OutcomeUnknown           it may have done what it was told all the same
ImageStoreAway               images cannot be kept for their address now
RunIdInUse                   a run with that id goes on
RunWithdrawn                 its client withdrew the run
LedgerError
+-- InsufficientCredits      `available` tenths
+-- TooManyAtOnce            the account's other requests still run
+-- ReservationLost          it was released meanwhile and cannot be had again
IdempotencyError
+-- IdempotencyConflict      the Idempotency-Key stands for another request
+-- StillRunning             the first request with that key has not ended
"""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 60


def shown(value: object) -> str:
    """Return a value that is refused as its failure shows it: its start."""
    text = str(value)
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    # Half of a surrogate pair, which JSON can hold, is no text to pydantic.
    return text.encode("utf-8", "backslashreplace").decode() if text.strip() else '""'


class ConfigurationError(Exception):
    """The settings do not allow to start; the message says what to change."""


class InvalidInput(ValueError):
    """Fields or the upload are wrong; a line of ``problems`` for each, which go to the client."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ImageError(ValueError):
    """The upload is no image to work with; the message names init_image and says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"init_image: {reason}")
        self.reason = reason


class DecodeTimeout(Exception):
    """The deadline passed before the image was decoded."""


class DecodersBusy(Exception):
    """No decoder will be free in time, or they are shut down."""


class ImageWithheld(Exception):
    """The image is not handed out; the message goes to the client."""

    def __init__(self) -> None:
        super().__init__(
            "the safety check held the picture back; another prompt, picture or seed may pass"
        )


class SafetyCheckHangs(Exception):
    """The safety check does not answer, and so the image cannot be handed out."""

    def __init__(self) -> None:
        super().__init__("the safety check does not answer")


class DatabaseAway(Exception):
    """The database cannot be reached or did not answer in time; trying again later may help."""


class OutcomeUnknown(DatabaseAway):
    """The database did not say that a change was made: it may have been, or still be."""


class ImageStoreAway(Exception):
    """The store of images that are fetched once more cannot be reached, or has no room."""


class DatabaseUnusable(ConfigurationError):
    """The URL is wrong, or the schema is newer than this server; the message says which."""


class RunIdInUse(Exception):
    """A run with that id goes on."""


class RunWithdrawn(Exception):
    """The run was withdrawn by its id: whoever still waits for it should not ask again."""


class LedgerError(Exception):
    """The ledger refuses."""


class InsufficientCredits(LedgerError):
    """The account has only ``available`` tenths of a credit; the message goes to the client."""

    def __init__(self, message: str, available: int) -> None:
        super().__init__(message)
        self.available = available


class TooManyAtOnce(LedgerError):
    """All ``limit`` requests that the key may have at the same time are running."""

    def __init__(self, limit: int | None) -> None:
        super().__init__(f"this key may have {limit} requests at the same time")


class ReservationLost(LedgerError):
    """The reservation was released meanwhile, and there are no credits to renew it."""


class IdempotencyError(Exception):
    """An Idempotency-Key is refused."""


class IdempotencyConflict(IdempotencyError):
    """The key stands for another request."""


class StillRunning(IdempotencyError):
    """The first request with the key has not ended."""
