"""Starters whose engines do not start, or do not end, as they should. Each writes the id of its
process into the file that the model's name is."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from pipelines.handle import GenerationHandle
from pipelines.request import GenerationRequest, Pixels
from scripts.benchmarks.replicas.sleeping import SleepingEngine
from scripts.benchmarks.simulation.tables import load_table
from server.engine_service import LoadedModel, StartError
from server.img2img.moderation import SafetyPolicy
from server.settings import Settings

LONG = 3600.0


def _write_who(settings: Settings) -> None:
    with Path(settings.model).open("a") as file:
        file.write(f"{os.getpid()}\n")


def hang(settings: Settings) -> LoadedModel:
    """Load for ever."""
    _write_who(settings)
    time.sleep(LONG)
    raise AssertionError


def wait_for_go(settings: Settings) -> LoadedModel:
    """Load until there is a second file, named as the first with ``.go`` behind it."""
    _write_who(settings)
    while not Path(f"{settings.model}.go").exists():
        time.sleep(0.02)
    return LoadedModel(SleepingEngine(load_table("h200")), "waiting", "sleeping", "none")


def fail_and_stay(settings: Settings) -> LoadedModel:
    """Fail beside a thread that would keep the process."""
    _write_who(settings)
    threading.Thread(target=time.sleep, args=(LONG,)).start()
    raise StartError("no such weights")


class _Breaking(SleepingEngine):
    """Hangs in the first request, and is broken then."""

    broken = False

    @property
    def alive(self) -> bool:
        return not self.broken

    def submit(
        self,
        request: GenerationRequest,
        timeout: float | None = None,
        arrived: float | None = None,
        *,
        taken: bool = False,
    ) -> GenerationHandle:
        self.broken = True
        time.sleep(LONG)
        raise AssertionError


def breaking(settings: Settings) -> LoadedModel:
    """Start well, and break."""
    _write_who(settings)
    return LoadedModel(_Breaking(load_table("h200")), "breaking", "sleeping", "none")


class _Scorer:
    obstacle = None
    alive = True

    def score(self, picture: Pixels) -> float:
        return 0.25


def scoring(settings: Settings) -> LoadedModel:
    """Start well, with a safety checker."""
    _write_who(settings)
    engine, safety = SleepingEngine(load_table("h200")), SafetyPolicy("blur", 0.5, _Scorer())
    return LoadedModel(engine, "scoring", "sleeping", "none", safety=safety)
