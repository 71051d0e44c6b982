"""Replicas in this process, that do what a test says: real ones with an engine that sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import contextmanager

import numpy as np

from pipelines.request import GenerationRequest
from scripts.benchmarks.replicas.sleeping import SleepingEngine
from scripts.benchmarks.simulation.tables import load_table
from server.engine_service import LoadedModel
from server.replicas.balance import Balance
from server.replicas.events import Call, Event
from server.replicas.remote_engine import NoReplica, RemoteEngine, ReplicaLost, work_of
from server.replicas.replica import EngineReplica


class FakeReplica:
    """A replica whose engine sleeps, and what befalls it."""

    def __init__(self, slower: float = 1.0, max_queue: int = 64) -> None:
        self.engine = SleepingEngine(load_table("h200"), slower, max_queue)
        self.engine.start()
        self.replica = EngineReplica(LoadedModel(self.engine, "fake", "cpu", "float32"))
        self.killed = asyncio.Event()
        self.frozen = False
        self.silent = False
        self.seeds: list[int] = []
        self.watched: list[str] = []


class FakeReplicas:
    """Several of them. ``balance`` hears of them before every call, and in `speak`."""

    def __init__(self, replicas: dict[str, FakeReplica], patience: float = 0.5) -> None:
        self.replicas = replicas
        self.balance = Balance(patience=patience)
        self.closed = False

    def speak(self) -> None:
        reports = self.balance._replicas
        self.balance.hear(
            {
                name: reports[name].report
                if (one.frozen or one.silent) and name in reports
                else one.replica.report()
                for name, one in self.replicas.items()
                if not one.killed.is_set()
            }
        )

    def call(self, call: Call, seconds: float, avoid: Collection[str]) -> FakeStream:
        self.speak()
        names = self.balance.choose(call.ident, work_of(call.request)[0], seconds, avoid)
        one = self.replicas[names[0]] if names else None
        if one is not None:
            one.seeds.append(call.request.seed)
        return FakeStream(one, call)

    def watch(self, ident: str) -> None:
        one = self.replicas[self.balance.replica_of(ident) or ""]
        one.watched.append(ident)
        one.replica.watch(ident)

    def close(self) -> None:
        self.closed = True
        for one in self.replicas.values():
            one.engine.drain(0.0)


class FakeStream:
    def __init__(self, one: FakeReplica | None, call: Call) -> None:
        self._one = one
        self._call = call
        self.cancelled = asyncio.Event()

    async def __aiter__(self) -> AsyncGenerator[Event]:
        if self._one is None:
            raise NoReplica("there is none")
        if self._one.frozen:
            await self.cancelled.wait()
            return
        events = self._one.replica.generate(self._call)
        killed = asyncio.ensure_future(self._one.killed.wait())
        coming: asyncio.Future[Event | None] = asyncio.get_running_loop().create_future()
        try:
            while True:
                coming = asyncio.ensure_future(anext(events, None))
                await asyncio.wait((coming, killed), return_when=asyncio.FIRST_COMPLETED)
                if killed.done():
                    raise ReplicaLost("killed")
                if (event := coming.result()) is None:
                    return
                yield event
        finally:
            for waiting in (killed, coming):
                waiting.cancel()
            await asyncio.gather(killed, coming, return_exceptions=True)
            await events.aclose()

    def cancel(self) -> None:
        self.cancelled.set()


@contextmanager
def remote_engine(
    *replicas: FakeReplica, patience: float = 0.5
) -> Iterator[tuple[RemoteEngine, FakeReplicas]]:
    """An engine over replicas that speak ten times a second, named a, b, c and so on."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    named = dict(zip("abcdefgh", replicas, strict=False))
    transport = FakeReplicas(named, patience)
    transport.speak()
    engine = RemoteEngine(transport, loop)
    engine.start()

    async def speak() -> None:
        while not transport.closed:
            transport.speak()
            await asyncio.sleep(0.05)

    speaking = asyncio.run_coroutine_threadsafe(speak(), loop)
    try:
        yield engine, transport
    finally:
        engine.drain(0.0)
        speaking.result(5.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5.0)
        loop.close()


def picture(seed: int = 1, steps: int = 20, size: int = 320, **more: object) -> GenerationRequest:
    image = np.full((size, size, 3), 100, np.uint8)
    return GenerationRequest(image, "a cat", seed=seed, steps=steps, **more)  # type: ignore[arg-type]
