"""Clients that ask an engine without HTTP, one request after the other, and what became of it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipelines.handle import GenerationHandle
from pipelines.request import GenerationRequest
from scripts.benchmarks.replicas.sleeping import WHO, drawn
from server.engine_service import RunningEngine

SIZE = 512
STEPS = 30
WAIT_SECONDS = 120.0


@dataclass
class Measured:
    """What clients saw: seconds of each request, its process, and what was wrong with it."""

    elapsed: float = 0.0
    seconds: list[float] = field(default_factory=list)
    processes: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return the images of a second."""
        return len(self.seconds) / self.elapsed

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def request(seed: int, strength: float = 0.35) -> GenerationRequest:
    """Return what every client asks for: 512 x 512, 30 steps of which 20 run, two rows each."""
    image = np.full((SIZE, SIZE, 3), seed % 251, np.uint8)
    return GenerationRequest(image, "a cat", seed=seed, steps=STEPS, image_strength=strength)


def ask(engine: RunningEngine, seed: int, measured: Measured, strength: float = 0.35) -> None:
    """Ask for one image, and check that it is the seed's."""
    asked, began = request(seed, strength), time.monotonic()
    try:
        handle = engine.submit(asked, WAIT_SECONDS)
        assert isinstance(handle, GenerationHandle)
        result = handle.wait(WAIT_SECONDS)
    except Exception as error:
        measured.failures.append(f"{type(error).__name__}: {error}")
        return
    if not np.array_equal(result.image, drawn(asked)):
        measured.failures.append(f"seed {seed}: another image")
        return
    measured.seconds.append(time.monotonic() - began)
    measured.processes[int(result.timings[WHO])] += 1


def under_load(
    engine: RunningEngine, clients: int, seconds: float, meanwhile: Callable[[], object] = int
) -> Measured:
    """Let ``clients`` ask for ``seconds``; ``meanwhile`` is called after a third of them."""
    measured, began = Measured(), time.monotonic()

    def client(number: int) -> None:
        turn = 1
        while time.monotonic() - began < seconds:
            ask(engine, 10_000 * (number + 1) + turn, measured)
            turn += 1

    with ThreadPoolExecutor(clients + 1) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        time.sleep(seconds / 3)
        meanwhile()
        for one in running:
            one.result()
    measured.elapsed = time.monotonic() - began
    return measured


def overhead(engine: RunningEngine, times: int = 60) -> float:
    """Return the median seconds of a request that takes the engine no time, one at a time.

    An image of 0.75 MiB goes there and back.
    """
    measured = Measured()
    for seed in range(1, times + 11):
        ask(engine, seed, measured, strength=1.0)
    if measured.failures:
        raise RuntimeError(measured.failures[0])
    return statistics.median(measured.seconds[10:])
