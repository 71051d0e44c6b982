"""The table from the domain's exceptions to what HTTP answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipelines import errors as engine_errors
from pipelines.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineDead,
    GenerationCancelled,
    GenerationFailed,
    RequestTooLong,
)
from server.errors import (
    DatabaseAway,
    DecodersBusy,
    DecodeTimeout,
    IdempotencyConflict,
    ImageError,
    ImageStoreAway,
    ImageWithheld,
    InsufficientCredits,
    InvalidInput,
    ReservationLost,
    RunIdInUse,
    SafetyCheckHangs,
    StillRunning,
    TooManyAtOnce,
)
from server.http.errors import API_ERRORS, BadRequest, api_error

ROWS: list[tuple[Exception, int, str, dict[str, str]]] = [
    (ImageError("the file is empty"), 400, "init_image: the file is empty", {}),
    (InvalidInput(["steps: 0 is not in 10..50", "b: is"]), 400, "steps: 0 is not in 10..50; b", {}),
    (ImageWithheld(), 400, "the safety check held the picture back", {}),
    (SafetyCheckHangs(), 503, "the safety check does not answer", {"Retry-After": "5"}),
    (DecodersBusy("too many wait"), 503, "too many wait", {"Retry-After": "2"}),
    (DecodeTimeout(), 504, "the picture was not decoded within 7.5 s", {}),
    (RequestTooLong("a picture", 9.0, 7.5), 400, "width, height, steps: a picture takes", {}),
    (EngineBusy("full", 3.2), 503, "full", {"Retry-After": "4"}),
    (EngineDead("not running", 30.0), 503, "not running", {"Retry-After": "30"}),
    (DeadlineExceeded("late"), 504, "the picture was not finished within 7.5 s", {}),
    (GenerationCancelled(), 503, "the request was withdrawn", {"Retry-After": "5"}),
    (GenerationFailed("the secret inside"), 500, "internal error, request id ", {}),
    (InsufficientCredits("not enough credits", 3), 402, "not enough credits", {}),
    (TooManyAtOnce(2), 429, "this key may have 2 requests", {"Retry-After": "1"}),
    (IdempotencyConflict(), 409, "Idempotency-Key: was used for another request", {}),
    (StillRunning(), 409, "Idempotency-Key: the first request", {"Retry-After": "1"}),
    (ReservationLost(), 503, "the credits held", {"Retry-After": "1"}),
    (DatabaseAway(), 503, "the accounts cannot be reached", {"Retry-After": "5"}),
    (RunIdInUse(), 409, "X-Run-Id: a run with it goes on", {"Retry-After": "1"}),
    (ImageStoreAway(), 503, "images cannot be kept for an address", {"Retry-After": "5"}),
    (BadRequest("as it is"), 400, "as it is", {}),
]


@pytest.mark.parametrize(("error", "status", "message", "headers"), ROWS)
def test_every_row(error: Exception, status: int, message: str, headers: dict[str, str]) -> None:
    answer = api_error(error, 7.5)
    assert (answer.status, answer.headers) == (status, headers)
    assert answer.message.startswith(message)
    assert "secret" not in answer.message


def test_every_exception_of_the_table_is_tried_and_every_one_of_the_engine_is_in_it() -> None:
    tried = {kind for error, *_ in ROWS for kind in type(error).__mro__}
    assert set(API_ERRORS) <= tried
    leaves = [
        kind
        for kind in vars(engine_errors).values()
        if isinstance(kind, type) and issubclass(kind, engine_errors.GenerationError)
    ]
    for kind in leaves:
        if kind is not engine_errors.GenerationError:
            assert set(kind.__mro__) & set(API_ERRORS), kind


def test_the_table_loads_no_model_no_picture_and_no_database() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'sqlalchemy'}"
    code = f"import sys, server.http.errors; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
