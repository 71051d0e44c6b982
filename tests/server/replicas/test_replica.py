"""One replica by itself."""

from __future__ import annotations

import asyncio
import threading

import pytest

from models.bundle import ModelBundle
from pipelines.engine.engine import Engine
from scripts.benchmarks.replicas.sleeping import SleepingEngine
from scripts.benchmarks.simulation.tables import load_table
from server.engine_service import LoadedModel
from server.img2img.moderation import SafetyPolicy
from server.replicas.events import Accepted, Call, Waited
from server.replicas.replica import EngineReplica
from tests.server.replicas.fakes import picture


class SlowScorer:
    obstacle = None
    alive = True

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def score(self, picture: object) -> float:
        assert self.may_end.wait(60)
        return 0.25


def test_a_report_asks_nothing_of_the_device(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten of them come each second, on the loop that carries progress, and a card is slow to say
    how full it is."""

    def ask(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("pipelines.engine.engine.device_usage", ask)
    replica = EngineReplica(LoadedModel(Engine(tiny), "m", "cpu", "none"))
    assert replica.report().backlog_seconds == 0.0


def test_pictures_that_wait_for_the_safety_check_hold_up_no_request() -> None:
    engine, scorer = SleepingEngine(load_table("h200")), SlowScorer()
    engine.start()
    model = LoadedModel(engine, "m", "cpu", "none", safety=SafetyPolicy("blur", 0.5, scorer))

    async def ask() -> None:
        replica = EngineReplica(model)
        image = picture().image
        # More than the event loop has threads of its own.
        scoring = [asyncio.ensure_future(replica.score(image)) for _ in range(40)]
        await asyncio.sleep(0)
        events = replica.generate(Call("a", picture(), Waited(), eager=False))
        try:
            async with asyncio.timeout(10):
                assert isinstance(await anext(events), Accepted)
        finally:
            scorer.may_end.set()
            await events.aclose()
        assert set(await asyncio.gather(*scoring)) == {0.25}

    try:
        asyncio.run(ask())
    finally:
        engine.drain(0.0)
