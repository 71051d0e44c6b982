"""What every replica still has to do, as one front knows it, and which of them is to do the next.

A replica says ten times a second how many seconds of work it has (`backlog_seconds`), and which
calls those are. That is old when it is read: calls that this front sent since are not in it, and
some that it saw finish still are. Both are reckoned with here by the calls' names, so that no two
machines' clocks are compared. No ray here, and no waiting; any thread may call.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Size = tuple[int, int]
"""Width and height of an image to make, in pixels."""


@dataclass(frozen=True)
class Report:
    """What a replica says of itself.

    ``number`` counts its reports, ``backlog_seconds`` is the predicted work of all ``calls`` that
    it has, ``warm`` are the sizes that it has made ready or has just made, and ``obstacle`` says
    what hangs in it.
    """

    number: int = 0
    backlog_seconds: float = 0.0
    running: int = 0
    waiting: int = 0
    calls: frozenset[str] = frozenset()
    warm: frozenset[Size] = frozenset()
    obstacle: str | None = None

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> Report:
        """Return the report in ``stats`` (`as_stats`); an empty one stands for none yet."""
        return cls(**{name: stats[name] for name in cls.__dataclass_fields__ if name in stats})

    def as_stats(self) -> dict[str, Any]:
        """Return it as a dictionary, the form that Ray carries."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass
class _Call:
    replica: str
    seconds: float
    ended: bool = False


@dataclass
class _Replica:
    report: Report
    heard: float
    """When the report was first seen here, in the front's own `time.monotonic()`."""


@dataclass
class Load:
    """Of all replicas together: images on devices, images that wait, seconds of work."""

    running: int = 0
    waiting: int = 0
    backlog_seconds: float = 0.0


@dataclass
class Balance:
    """The replicas that one front knows, and its own calls on them.

    Of replicas whose work differs by less than ``near_seconds`` one comes first on which the size
    is warm. A replica is lost when it has said nothing new for ``patience`` seconds while another
    has: where none says anything, the messenger is down and not they.
    """

    near_seconds: float = 0.1
    patience: float = 3.0
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    most: int = field(default=0, init=False)
    """The most replicas that there were at a time; one may just be away."""
    _replicas: dict[str, _Replica] = field(default_factory=dict)
    _calls: dict[str, _Call] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, reports: Mapping[str, Report]) -> None:
        """Take the newest report of every replica that there is; others are forgotten."""
        now = self.clock()
        with self._lock:
            for name in self._replicas.keys() - reports.keys():
                del self._replicas[name]
            for name, report in reports.items():
                known = self._replicas.get(name)
                if known is None or known.report.number != report.number:
                    self._replicas[name] = _Replica(report, now)
            self.most = max(self.most, len(self._replicas))
            for ident, call in list(self._calls.items()):
                replica = self._replicas.get(call.replica)
                settled = call.ended and (replica is None or ident not in replica.report.calls)
                if settled:
                    del self._calls[ident]

    def choose(
        self,
        ident: str,
        size: Size,
        seconds: float,
        avoid: Collection[str] = (),
        among: Collection[str] | None = None,
    ) -> list[str]:
        """Return the replicas, the best one first, and count the call ``ident`` of about
        ``seconds`` as that one's. Those to ``avoid`` and those that are lost come last."""
        with self._lock:
            names = self._ranked(size, avoid, among)
            if names:
                self._calls[ident] = _Call(names[0], seconds)
            return names

    def idlest(self, avoid: Collection[str] = ()) -> str | None:
        """Return the replica for what is no call, None where there is none."""
        with self._lock:
            return next(iter(self._ranked(None, avoid)), None)

    def _ranked(
        self, size: Size | None, avoid: Collection[str], among: Collection[str] | None = None
    ) -> list[str]:
        names = [n for n in self._replicas if among is None or n in among]
        owed = self._owed()
        lost = self._lost()
        worse = {n: n in avoid or n in lost for n in names}
        usable = [owed[n] for n in names if not worse[n]]
        least = min(usable or owed.values(), default=0.0)

        def rank(name: str) -> tuple[bool, bool, bool, float, float]:
            far = owed[name] > least + self.near_seconds
            cold = size not in self._replicas[name].report.warm
            return worse[name], far, cold, owed[name], self.chance()

        return sorted(names, key=rank)

    def moved(self, ident: str, replica: str) -> None:
        """Count the call as another replica's than the best one's."""
        with self._lock:
            if (call := self._calls.get(ident)) is not None:
                call.replica = replica

    def weighed(self, ident: str, seconds: float) -> None:
        """Correct what the call takes, as its replica predicts it."""
        with self._lock:
            if (call := self._calls.get(ident)) is not None:
                call.seconds = seconds

    def ended(self, ident: str) -> None:
        """Count the call as done, whatever became of it."""
        with self._lock:
            if (call := self._calls.get(ident)) is not None:
                call.ended = True

    def replica_of(self, ident: str) -> str | None:
        """Return the replica that has the call, None if none was chosen."""
        with self._lock:
            call = self._calls.get(ident)
            return None if call is None else call.replica

    def owed(self) -> dict[str, float]:
        """Return the seconds of work that each replica has, as far as this front knows."""
        with self._lock:
            return self._owed()

    def lost(self) -> dict[str, str]:
        """Return the replicas from which nothing more is to be expected, and why."""
        with self._lock:
            return self._lost()

    @property
    def usable(self) -> bool:
        """Return whether there is a replica to send a call to."""
        with self._lock:
            return len(self._replicas) > len(self._lost())

    @property
    def load(self) -> Load:
        """Return the load of all replicas together."""
        with self._lock:
            reports = [replica.report for replica in self._replicas.values()]
            return Load(
                sum(report.running for report in reports),
                sum(report.waiting for report in reports),
                sum(self._owed().values()),
            )

    def _owed(self) -> dict[str, float]:
        owed = {name: r.report.backlog_seconds for name, r in self._replicas.items()}
        for ident, call in self._calls.items():
            replica = self._replicas.get(call.replica)
            if replica is None:
                continue
            listed = ident in replica.report.calls
            if listed and call.ended:
                owed[call.replica] -= call.seconds
            elif not listed and not call.ended:
                owed[call.replica] += call.seconds
        return {name: max(0.0, seconds) for name, seconds in owed.items()}

    def _lost(self) -> dict[str, str]:
        lost = {n: r.report.obstacle for n, r in self._replicas.items() if r.report.obstacle}
        newest = max((r.heard for r in self._replicas.values()), default=0.0)
        if self.clock() - newest <= self.patience / 2:
            for name, replica in self._replicas.items():
                if (silent := self.clock() - replica.heard) > self.patience:
                    lost.setdefault(name, f"it has said nothing for {silent:.1f} s")
        return lost


class Prices:
    """What a call takes on a device, in seconds: learnt from what replicas predicted before.

    By the very work if it was seen, else in proportion to rows, evaluations and pixels.
    """

    def __init__(self, most: int = 512) -> None:
        self._known: dict[tuple[Size, int, int], float] = {}
        self._rate = 1e-6  # seconds of an evaluation, a row and a pixel; corrected by the first
        self._most = most

    def guess(self, size: Size, rows: int, evaluations: int) -> float:
        """Return the seconds that a request of ``size`` is taken to need."""
        known = self._known.get((size, rows, evaluations))
        return self._rate * _work(size, rows, evaluations) if known is None else known

    def learn(self, size: Size, rows: int, evaluations: int, seconds: float) -> None:
        """Take what a replica predicted."""
        if seconds <= 0.0 or evaluations == 0:
            return
        key = (size, rows, evaluations)
        while len(self._known) >= self._most and key not in self._known:
            del self._known[next(iter(self._known))]
        self._known[key] = seconds
        self._rate = seconds / _work(*key)


def _work(size: Size, rows: int, evaluations: int) -> float:
    return size[0] * size[1] * rows * max(1, evaluations)


def replicas_for(
    backlogs: Iterable[float], queued: float, seconds_queued: float, target_seconds: float
) -> int:
    """Return how many replicas bring the work of each down to ``target_seconds``; at least 1.

    ``backlogs`` are the seconds that replicas have, ``queued`` are calls that wait in fronts, of
    ``seconds_queued`` each.
    """
    seconds = sum(backlogs) + queued * seconds_queued
    return max(1, -int(-seconds // target_seconds))
