"""The safety check's thread: many callers, batches, failures that reach the right caller."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from models.auxiliary.choose import choose_safety
from models.auxiliary.safety_checker import SafetyModel
from models.bundle import ModelBundle
from pipelines.engine.watch import Patience
from pipelines.request import Pixels
from pipelines.safety_check import MAX_BATCH, THREAD, SafetyCheck
from tests.tiny_model import write_tiny_checker
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def model(tiny: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> SafetyModel:
    folder: Path = tmp_path_factory.mktemp("checker") / "checker"
    return choose_safety(tiny, str(write_tiny_checker(folder)))


@pytest.fixture
def check(model: SafetyModel) -> SafetyCheck:
    return SafetyCheck(model)


def pictures(count: int) -> list[Pixels]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (48, 64, 3)).astype(np.uint8) for _ in range(count)]


def test_every_caller_gets_the_score_of_its_own_picture(
    check: SafetyCheck, model: SafetyModel
) -> None:
    asked = pictures(3 * MAX_BATCH)
    futures = [check.submit(picture) for picture in asked]
    got = [future.result(30) for future in futures]
    assert got == pytest.approx([model.scores([p])[0] for p in asked], abs=1e-3)
    assert len(set(got)) > 1
    assert check.batches <= len(asked)


def test_a_failure_reaches_the_caller_and_the_next_is_scored(check: SafetyCheck) -> None:
    with pytest.raises(Exception, match=r"."):
        check.score(np.zeros((4,), dtype=np.uint8))
    assert check.score(pictures(1)[0]) < 0


def test_its_thread_is_there_only_while_pictures_wait(check: SafetyCheck) -> None:
    """A server that ends would take an idle one for one that hangs."""
    for _ in range(2):
        for future in [check.submit(picture) for picture in pictures(5)]:
            assert future.result(30) < 0
        wait_until(lambda: THREAD not in [thread.name for thread in threading.enumerate()])


def test_without_a_thread_a_picture_has_no_score_and_the_next_has(
    check: SafetyCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as lacking:
        lacking.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            check.score(pictures(1)[0])
    assert check.score(pictures(1)[0]) < 0
    assert check.batches == 1


def test_a_check_that_hangs_says_so_and_keeps_no_caller(
    model: SafetyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(model, "scores", lambda batch: release.wait(60) and [0.5] * len(batch))
    patience = Patience(seconds=0.0, factor=0.1, lost_seconds=0.0, lost_factor=0.2)
    check = SafetyCheck(model, patience, score_seconds=0.01)
    assert check.obstacle is None
    with pytest.raises(TimeoutError):
        check.score(pictures(1)[0])
    give_up = time.monotonic() + 30
    while check.alive and time.monotonic() < give_up:
        time.sleep(0.01)
    assert not check.alive
    assert "the safety check hangs" in str(check.obstacle)
    release.set()
    wait_until(lambda: check.obstacle is None)
    assert check.alive
