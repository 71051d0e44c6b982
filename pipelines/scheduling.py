"""What the device does next. Pure policy: no torch, and no clock of its own."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pipelines.batching import GroupKey, pad_rows
from pipelines.cost import CostTable


@dataclass(frozen=True)
class PolicyConfig:
    max_queue: int = 64
    max_places: int = 64
    max_rows: int = 16
    max_pixels: int = 16 * 64 * 64
    row_buckets: Sequence[int] = ()
    decode_part_pixels: int = 64 * 64
    turn_seconds: float = 0.1
    min_gain: float = 0.25
    slack_seconds: float = 0.0
    slack_factor: float = 1.0
    mode: str = "edf"


@dataclass(eq=False)
class Task:
    ident: int
    key: GroupKey
    rows: int
    evaluations: int
    arrived: float
    deadline: float | None = None
    due: float = 0.0
    encoded: bool = False
    done: int = 0
    parts: int = 0

    @property
    def order(self):
        return (self.due, self.arrived, self.ident)


@dataclass(frozen=True)
class Encode:
    ident: int
    key: GroupKey
    seconds: float


@dataclass(frozen=True)
class Tick:
    key: GroupKey
    idents: tuple[int, ...]
    rows: int
    padded: int
    seconds: float


@dataclass(frozen=True)
class Decode:
    ident: int
    key: GroupKey
    part: int
    parts: int
    seconds: float


Work: TypeAlias = Encode | Tick | Decode


@dataclass(eq=False)
class Group:
    key: GroupKey
    tasks: list[Task] = field(default_factory=list)
    deficit: float = 0.0
    round: int = 0


class Scheduler:
    def __init__(self, table: CostTable, config: PolicyConfig | None = None):
        self.table = table
        self.config = config or PolicyConfig()
        self.tasks: dict[int, Task] = {}
        self.groups: dict[GroupKey, Group] = {}
        self.current: Group | None = None
        self.round = 0

    def unloaded(self, t) -> float:
        p = t.key.latent_pixels
        return (
            self.table.encode_seconds(p)
            + self.table.decode_seconds(p)
            + t.evaluations * self.table.tick_seconds(p, self.pad(t.rows))
        )

    def pad(self, rows):
        return pad_rows(rows, self.config.row_buckets)

    def remaining(self, t) -> float:
        p = t.key.latent_pixels
        n = self.n_parts(p)
        return (
            (0 if t.encoded else self.table.encode_seconds(p))
            + self.table.decode_seconds(p) * (n - t.parts) / n
            + (t.evaluations - t.done) * self.table.tick_seconds(p, self.pad(t.rows))
        )

    def n_parts(self, pixels):
        return max(1, -(-pixels // self.config.decode_part_pixels))

    def add(self, t: Task):
        c = self.config
        t.due = (
            t.deadline
            if t.deadline is not None
            else (t.arrived + c.slack_seconds + c.slack_factor * self.unloaded(t))
        )
        self.tasks[t.ident] = t
        g = self.groups.get(t.key)
        if g is None:
            g = self.groups[t.key] = Group(t.key)
            g.round = self.round - 1 if c.mode == "drr" else 0
        insort(g.tasks, t, key=lambda x: x.order)

    def remove(self, ident):
        t = self.tasks.pop(ident)
        g = self.groups[t.key]
        g.tasks.remove(t)
        if not g.tasks:
            del self.groups[t.key]
            if self.current is g:
                self.current = None

    def plan(self, now) -> Work | None:
        if not self.groups:
            return None
        return self.unit(self.pick())

    def pick(self):
        c = self.config
        if c.mode == "edf":
            return min(self.groups.values(), key=lambda g: g.tasks[0].order)
        if c.mode == "edfdrr":
            able = [g for g in self.groups.values() if g.deficit > 0]
            while not able:
                grant = c.turn_seconds * max(self.unloaded(t) for g in self.groups.values() for t in g.tasks)
                for g in self.groups.values():
                    g.deficit += grant
                able = [g for g in self.groups.values() if g.deficit > 0]
            return min(able, key=lambda g: g.tasks[0].order)
        if c.mode == "srpt":
            return min(self.groups.values(), key=lambda g: min(self.remaining(t) for t in g.tasks))
        g = self.current
        if g is not None and g.deficit > 0:
            return g
        while True:
            fresh = [g for g in self.groups.values() if g.round < self.round]
            if not fresh:
                self.round += 1
                continue
            g = min(fresh, key=lambda g: g.tasks[0].order)
            g.round = self.round
            g.deficit = min(g.deficit, 0.0) + (
                c.turn_seconds if c.mode == "drr" else self.remaining(g.tasks[0])
            )
            if g.deficit > 0:
                self.current = g
                return g

    def unit(self, g) -> Work:
        p = g.key.latent_pixels
        for t in g.tasks:
            if t.done == t.evaluations:
                n = self.n_parts(p)
                return Decode(t.ident, g.key, t.parts, n, self.table.decode_seconds(p) / n)
        chosen, rows = self.choose(g)
        for t in chosen:
            if not t.encoded:
                return Encode(t.ident, g.key, self.table.encode_seconds(p))
        padded = self.pad(rows)
        return Tick(
            g.key, tuple(t.ident for t in chosen), rows, padded, self.table.tick_seconds(p, padded)
        )

    def choose(self, g):
        c = self.config
        p = g.key.latent_pixels
        limit = max(2, min(c.max_rows, c.max_pixels // p))
        cost = self.table.tick_seconds
        rows = 0
        solo = 0.0
        best, best_rows, best_cost, best_solo = 0, 0, 0.0, 0.0
        for n, t in enumerate(g.tasks, 1):
            if rows + t.rows > limit:
                break
            rows += t.rows
            solo += cost(p, self.pad(t.rows))
            now = cost(p, self.pad(rows))
            if n == 1 or now - best_cost <= (1 - c.min_gain) * (solo - best_solo):
                best, best_rows, best_cost, best_solo = n, rows, now, solo
        return g.tasks[:best], best_rows

    def complete(self, work: Work) -> list[int]:
        """idents finished"""
        g = self.groups.get(work.key)
        if g is not None:
            g.deficit -= work.seconds
        if isinstance(work, Tick):
            for i in work.idents:
                self.tasks[i].done += 1
        elif isinstance(work, Encode):
            self.tasks[work.ident].encoded = True
        else:
            t = self.tasks[work.ident]
            t.parts += 1
            if t.parts == work.parts:
                self.remove(t.ident)
                return [t.ident]
        return []
