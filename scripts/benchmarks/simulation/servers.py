"""Servers on a virtual clock: the real policy, and the two ways of serving it is held against.

All run on one device that takes the seconds of one cost table: exactly, or times a jitter that the
policy, like the engine, only learns of by what its units took. Latency is counted from a
request's arrival to the end of its decode, in seconds; a refused request has infinite latency.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from pipelines.scheduler.cost_model import CostTable
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.scheduler import PolicyConfig, Scheduler
from pipelines.scheduler.work import Encode, Step, Work
from scripts.benchmarks.simulation.traces import Arrival


@dataclass
class Outcome:
    """What became of a trace: ``latencies`` by the request's ident, and what the steps held."""

    latencies: list[float]
    steps: int = 0
    rows: int = 0
    padded: int = 0
    busy: float = 0.0
    finished: int = 0
    ended: float = 0.0

    def step(self, rows: int, padded: int, count: int = 1) -> None:
        self.steps += count
        self.rows += count * rows
        self.padded += count * padded

    @property
    def rows_per_step(self) -> float:
        return self.rows / max(1, self.steps)

    @property
    def padding_waste(self) -> float:
        """The share of computed rows that were nobody's."""
        return 1.0 - self.rows / max(1, self.padded)


def alone_seconds(table: CostTable, arrival: Arrival, config: PolicyConfig) -> float:
    """A request's latency on an idle device."""
    return batch_seconds(table, [arrival], config)


@dataclass(frozen=True)
class Jitter:
    """Log-normal noise of mean 1 on the seconds of every unit; ``spread`` is of its logarithm."""

    spread: float = 0.0
    seed: int = 0


class Device:
    """One device under the real policy, which learns from ``jitter``ed seconds as the engine's."""

    def __init__(
        self,
        table: CostTable,
        config: PolicyConfig,
        outcome: Outcome,
        jitter: Jitter | None = None,
    ) -> None:
        self._table = table
        self._spread = 0.0 if jitter is None else jitter.spread
        self._random = random.Random(0 if jitter is None else jitter.seed)
        # What it learns must not change the device itself.
        known = CostTable.from_json(table.to_json()) if self._spread else table
        self.scheduler = Scheduler(known, config)
        self.clock = 0.0
        self.outcome = outcome
        self._arrived: dict[int, float] = {}

    def advance(self, until: float = math.inf) -> None:
        """Work up to ``until``, or until nothing is left. A unit that has begun is finished."""
        while self.clock < until and self.step():
            pass
        if math.isfinite(until):
            self.clock = max(self.clock, until)

    def step(self) -> bool:
        """One unit of work; False if there is none."""
        work = self.scheduler.plan()
        if work is None:
            return False
        seconds = work.seconds
        if self._spread:
            seconds = self._true_seconds(work)
            self.scheduler.predictions.learn(work, seconds)
        self.clock += seconds
        self.outcome.busy += seconds
        if isinstance(work, Step):
            self.outcome.step(work.rows, work.padded)
        for ident in self.scheduler.complete(work):
            self.outcome.latencies[ident] = self.clock - self._arrived.pop(ident)
            self.outcome.finished += 1
            self.outcome.ended = max(self.outcome.ended, self.clock)
        return True

    def _true_seconds(self, work: Work) -> float:
        """Return the seconds that a unit takes, whatever the policy believes."""
        pixels = work.key.latent_pixels
        if isinstance(work, Step):
            seconds = self._table.step_seconds(pixels, work.padded)
        elif isinstance(work, Encode):
            seconds = self._table.encode_seconds(pixels) / work.parts
        else:
            seconds = self._table.decode_seconds(pixels) / work.parts
        return seconds * self._random.lognormvariate(-(self._spread**2) / 2, self._spread)

    def offer(self, arrival: Arrival, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else arrival.at + timeout
        state = RequestState(
            arrival.ident, arrival.key, arrival.rows, arrival.evaluations, arrival.at, deadline
        )
        if self.scheduler.offer(state, arrival.at) is not None:
            return False
        self._arrived[arrival.ident] = arrival.at
        return True


def serve_by_policy(
    table: CostTable,
    trace: Sequence[Arrival],
    config: PolicyConfig,
    jitter: Jitter | None = None,
) -> Outcome:
    """Serve ``trace`` by the real policy on one device."""
    outcome = Outcome([math.inf] * len(trace))
    device = Device(table, config, outcome, jitter)
    for arrival in trace:
        device.advance(arrival.at)
        device.offer(arrival)
    device.advance()
    return outcome


def equal_requests(queue: Sequence[Arrival], config: PolicyConfig) -> list[Arrival]:
    """The first of ``queue`` and all that request-level batching can run with it.

    Equal must be size, sampler, steps, evaluations and guidance scale; a step's limits hold.
    """
    head = queue[0]
    most = max(1, config.limits.rows_for(head.key) // head.rows)
    equal = (a for a in queue if a.key == head.key and a.recipe == head.recipe)
    return list(islice(equal, most))


def batch_seconds(table: CostTable, batch: Sequence[Arrival], config: PolicyConfig) -> float:
    """A batch of equal requests from its first encode to its last decode."""
    head = batch[0]
    pixels = head.key.latent_pixels
    padded = config.limits.padded(head.rows * len(batch))
    vae = table.encode_seconds(pixels) + table.decode_seconds(pixels)
    return len(batch) * vae + head.evaluations * table.step_seconds(pixels, padded)


def _serve_queue(
    table: CostTable, trace: Sequence[Arrival], config: PolicyConfig, share: bool
) -> Outcome:
    """First come, first served, to the end; with ``share`` with all in the queue that are equal.

    There is no waiting for more to come: a batch starts as soon as the device is free.
    """
    outcome = Outcome([math.inf] * len(trace))
    queue: deque[Arrival] = deque()
    clock = 0.0
    coming = 0
    running = 0
    while coming < len(trace) or queue:
        if not queue and trace[coming].at > clock:
            clock = trace[coming].at
            running = 0
        while coming < len(trace) and trace[coming].at <= clock:
            # The batch that ends now was still there when these came.
            if len(queue) + running < config.max_queue:
                queue.append(trace[coming])
            coming += 1
        if not queue:
            continue
        head = queue[0]
        batch = equal_requests(queue, config) if share else [head]
        chosen = {arrival.ident for arrival in batch}
        queue = deque(arrival for arrival in queue if arrival.ident not in chosen)
        rows = head.rows * len(batch)
        seconds = batch_seconds(table, batch, config)
        padded = config.limits.padded(rows)
        outcome.step(rows, padded, head.evaluations)
        outcome.busy += seconds
        clock += seconds
        for arrival in batch:
            outcome.latencies[arrival.ident] = clock - arrival.at
        outcome.finished += len(batch)
        outcome.ended = clock
        running = len(batch)
    return outcome


def serve_one_at_a_time(
    table: CostTable, trace: Sequence[Arrival], config: PolicyConfig
) -> Outcome:
    return _serve_queue(table, trace, config, share=False)


def serve_request_batches(
    table: CostTable, trace: Sequence[Arrival], config: PolicyConfig
) -> Outcome:
    return _serve_queue(table, trace, config, share=True)


Server = Callable[[CostTable, Sequence[Arrival], PolicyConfig], Outcome]
SERVERS: dict[str, Server] = {
    "policy": serve_by_policy,
    "request batches": serve_request_batches,
    "one at a time": serve_one_at_a_time,
}
