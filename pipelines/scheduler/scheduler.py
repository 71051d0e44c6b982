"""The scheduler: names the device's next unit of work. No torch here, and no clock of its own.

The device does one *unit* of work at a time: encode a picture, one denoise step of a group, or one
part of a decode. After each, `Scheduler.plan` names the next. What it goes by:

- **Earliest due first**, within a group (latent size, text length, padding) and between groups. A
  request is due at its arrival plus a slack in proportion to what it would take alone, or when it
  must be begun to meet its deadline if that is sooner. So a small picture does not wait behind a
  large one, and nobody starves: nothing that arrives after a request's due time comes before it.
- **What is taken is done.** A request is refused if those before it leave it too little time, or if
  it would leave too little to one that is due after it. Where those of its own batch alone are too
  many, the refusal says so.
- **Width.** The leader's group mates share its step as far as the cost table says that sharing
  gains. Where cost is linear in rows it never does, and requests run one by one to their end.
- **Trials.** What would take longer alone than it is allowed is refused for good. Once in a while
  one such request is let through, because units alone correct a cost table that is wrong. It is
  most likely lost, so it goes behind all that is not, whatever its deadline.
"""

from __future__ import annotations

import math
import sys
from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pipelines.request import ClipGuidancePreset
from pipelines.scheduler.batching import GroupKey, StepLimits
from pipelines.scheduler.cost_model import CostTable
from pipelines.scheduler.predictions import Predictions
from pipelines.scheduler.request_state import RequestState, due_order
from pipelines.scheduler.work import Decode, Encode, Refusal, Step, TooLong, Work


@dataclass(frozen=True)
class PolicyConfig:
    """``docs/benchmarks/simulator.md`` says what other ``slack_factor`` and ``min_gain`` would do.

    ``max_queue`` requests wait or run at most, with those that another engine had taken twice as
    many; ``max_places`` of them hold latents on the device.
    ``limits`` bound and pad a step. Encodes and decodes are handed out in one
    part for every ``part_pixels`` latent pixels. A group mate joins a step if it adds at most
    ``1 - min_gain`` of what it would cost alone. A request is due ``slack_factor`` times its
    predicted seconds alone after it arrived, or ``deadline_margin`` times those before its deadline
    if that is sooner.
    Decodes that wait at the same time share one, by numbers of ``shared_decodes``; empty: they
    never do. Requests that take too long alone are tried every ``trial_seconds``, one at a time.
    """

    max_queue: int = 64
    max_places: int = 64
    limits: StepLimits = field(default_factory=StepLimits)
    part_pixels: int = 64 * 64
    min_gain: float = 0.1
    slack_factor: float = 16.0
    deadline_margin: float = 1.15
    trial_seconds: float = 60.0
    shared_decodes: Sequence[int] = ()


CAP_STEPS = 100
"""Steps after which a cap on rows is doubled: one that is still needed costs a failed step then."""


@dataclass(eq=False)
class _Group:
    """The requests of one key in order of due time, and the most rows of a step of theirs.

    ``capped`` are the steps since that was last set or doubled.
    """

    key: GroupKey
    tasks: list[RequestState] = field(default_factory=list)
    row_cap: int = sys.maxsize
    capped: int = 0

    def count_step(self) -> None:
        self.capped += 1
        if self.capped >= CAP_STEPS:
            self.row_cap, self.capped = min(2 * self.row_cap, sys.maxsize), 0


class Scheduler:
    """Takes requests, hands out units of work. Not thread-safe: the engine has a lock for it.

    The life of a unit: ``work = plan()``, the engine launches it, ``advance(work)``; at its end
    ``predictions.learn(work, seconds it took)``, and `remove` for the requests that it finished.
    """

    def __init__(self, table: CostTable, config: PolicyConfig | None = None) -> None:
        self.config = config or PolicyConfig()
        self.predictions = Predictions(table, self.config.limits, self.config.part_pixels)
        self._last_trial = -math.inf
        self._trial: int | None = None
        self._tasks: dict[int, RequestState] = {}  # by ident: all that wait, run or leave
        self._groups: dict[GroupKey, _Group] = {}
        self._places = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, ident: object) -> bool:
        return ident in self._tasks

    # Coming and going

    def offer(self, task: RequestState, now: float) -> Refusal | TooLong | None:
        """Take ``task``, or say why not: it takes too long in itself, the queue is full, or its
        deadline cannot be met."""
        seconds = self.predictions.alone(task)
        task.due = task.arrived + self.config.slack_factor * seconds
        trial = task.allowed is not None and seconds > task.allowed
        if task.deadline is not None and not trial:
            latest = task.deadline - self.config.deadline_margin * seconds
            task.due = max(task.arrived, min(task.due, latest))
        if trial and not self._may_try(task, now):
            return TooLong(seconds, task.allowed or 0.0)
        most = self.config.max_queue * (2 if task.taken else 1)
        if len(self._tasks) >= most:
            why = f"{len(self._tasks)} requests are waiting"
            return self._refusal(task, why, self.backlog_seconds(), full=True)
        if task.deadline is not None and not trial:
            ahead = self.backlog_seconds(ahead_of=task)
            late = now + ahead + seconds - task.deadline
            if late > 0.0:
                left = max(0.0, task.deadline - now)
                why = f"{ahead:.0f} s are before it" if ahead >= 1.0 else f"{left:.0f} s are left"
                why = f"the request cannot be done in time: about {why}"
                # Once those before it are done, waiting longer gains nothing.
                return self._refusal(task, why, min(late, ahead))
        refusal = self._take(task, now)
        if trial and refusal is None:
            self._trial, self._last_trial = task.ident, now
        return refusal

    def _take(self, task: RequestState, now: float) -> Refusal | None:
        """Take ``task``, unless one due after it would miss its deadline by that alone."""
        others = [] if task.taken else self._by_due()
        behind = [
            (other.ident, other.deadline - now)
            for other in others
            if other.deadline is not None and due_order(other) > due_order(task)
        ]
        before = self.seconds_to_pictures() if behind else {}
        self._tasks[task.ident] = task
        group = self._groups.get(task.key)
        if group is None:
            group = self._groups[task.key] = _Group(task.key)
        insort(group.tasks, task, key=due_order)
        after = self.seconds_to_pictures() if behind else {}
        for ident, left in behind:
            if before[ident] <= left < after[ident]:
                self.remove(task.ident)
                why = "one that was taken before could not be done in time"
                return self._refusal(task, why, before[ident])
        return None

    def _refusal(
        self, task: RequestState, why: str, retry_after: float, *, full: bool = False
    ) -> Refusal:
        """Return the refusal of ``task``, which says so where its own batch would be enough: it is
        ``full`` of that alone, or takes longer than it may."""
        if of_batch := self.backlog_seconds(batch_of=task):
            seconds = of_batch + self.predictions.alone(task)
            if task.allowed is not None and seconds > task.allowed:
                why = f"together they take longer than {task.allowed:g} s"
                return Refusal(why, retry_after, together=True)
            if full and all(task.goes_with(other) for other in self):
                return Refusal("the queue holds no more", retry_after, together=True)
        return Refusal(why, retry_after)

    def _may_try(self, task: RequestState, now: float) -> bool:
        """Return whether a request that takes too long is let through, so that its units teach the
        table.

        None is while the last one is still here, or where its turn would not come in its time.
        """
        return (
            now - self._last_trial >= self.config.trial_seconds
            and self._trial not in self._tasks
            and (task.deadline is None or now + self.backlog_seconds(task) < task.deadline)
        )

    def prepared(self, ident: int) -> None:
        """Plan for a request from now on. Unknown ones are ignored."""
        if (task := self._tasks.get(ident)) is not None:
            task.prepared = True

    def remove(self, ident: int) -> bool:
        """Forget a request: finished, cancelled, failed or expired. False if it was not here."""
        task = self._tasks.pop(ident, None)
        if task is not None:
            self._leave(task)
        return task is not None

    def _leave(self, task: RequestState) -> None:
        """Plan nothing more for ``task``, whose place is free from now on."""
        if task.leaving:
            return
        task.leaving = True
        self._places -= task.holds_place
        group = self._groups[task.key]
        group.tasks.remove(task)
        if not group.tasks:
            del self._groups[task.key]

    def cap_rows(self, key: GroupKey, rows: int) -> None:
        """No step of ``key`` is to have more rows for now.

        For a device that ran out of memory. A request of two rows still has its two. The cap is
        doubled after `CAP_STEPS` steps, and gone with the last request of its key.
        """
        group = self._groups.get(key)
        if group is not None:
            group.row_cap, group.capped = max(2, min(group.row_cap, rows)), 0

    def __iter__(self) -> Iterator[RequestState]:
        """Give all requests, in the order of arrival."""
        return iter(list(self._tasks.values()))

    def present(self, idents: Iterable[int]) -> list[RequestState]:
        """Return those of ``idents`` that are still here."""
        return [self._tasks[ident] for ident in idents if ident in self._tasks]

    def waiting(self) -> list[RequestState]:
        """Return the requests of which nothing is on the device yet, in order of due time."""
        return [task for task in self._by_due() if not task.holds_place]

    def _by_due(self) -> list[RequestState]:
        """Return the requests for which anything is still to be planned, in order of due time."""
        return sorted(
            (task for group in self._groups.values() for task in group.tasks), key=due_order
        )

    # Working

    def plan(self, now: float | None = None) -> Work | None:
        """The next unit of work; None if there is none yet. Changes no request.

        Without the time ``now`` nothing that has a deadline waits for another's decode.
        """
        firsts = (next(self._able(group.tasks), None) for group in self._groups.values())
        first = min((task for task in firsts if task is not None), key=due_order, default=None)
        if first is None:
            return None
        mates = list(self._able(self._groups[first.key].tasks))
        leader = next((task for task in mates if task.denoised), first)
        return self._unit(leader, mates, now)

    def advance(self, work: Work, *, last: bool = False, failed: Collection[int] = ()) -> list[int]:
        """Count a unit that has been launched; gives the requests whose last one it is.

        Those and the ``failed`` ones are leaving: here until `remove`, but nothing is planned for
        them. ``last`` says that no further part of an encode or a decode is needed: it was cached.
        Requests that were removed while the unit ran are passed over.
        """
        finished = []
        if isinstance(work, Step) and (group := self._groups.get(work.key)) is not None:
            group.count_step()
        for task in self.present(work.idents):
            if task.ident in failed:
                self._leave(task)
            elif isinstance(work, Step):
                task.done += 1
            elif isinstance(work, Encode):
                self._places += not task.holds_place
                task.encode_parts_done += 1
                task.encoded = last or task.encode_parts_done >= work.parts
            else:
                task.parts_done += 1
                if last or task.parts_done >= work.parts:
                    finished.append(task.ident)
                    self._leave(task)
        return finished

    def begin_steps_anew(self, ident: int) -> None:
        """Plan the steps of a request from the first one on; those that still run do not count."""
        for task in self.present((ident,)):
            task.ended -= task.done
            task.done = 0

    def complete(
        self, work: Work, seconds: float | None = None, *, last: bool = False
    ) -> list[int]:
        """Account for a done unit; gives the requests that are finished, which are forgotten.

        As `advance`, `Predictions.learn` and `remove`, for a device that ends one unit before it
        begins the next. ``seconds`` is what it took and teaches the cost table; None teaches
        nothing.
        """
        finished = self.advance(work, last=last)
        if seconds is not None:
            self.predictions.learn(work, seconds)
        for ident in finished:
            self.remove(ident)
        return finished

    # Predicting

    def backlog_seconds(
        self, ahead_of: RequestState | None = None, *, batch_of: RequestState | None = None
    ) -> float:
        """Predicted seconds of all that is left to do, or of what comes before ``ahead_of``, or of
        what was asked for together with ``batch_of``.

        Within a group as many requests share a step as would if all were ready.
        """
        seconds = 0.0
        for group in self._groups.values():
            tasks = group.tasks
            if ahead_of is not None:
                tasks = [task for task in tasks if due_order(task) <= due_order(ahead_of)]
            if batch_of is not None:
                tasks = [task for task in tasks if batch_of.goes_with(task)]
            if tasks:
                sharing, rows = self._share(tasks)
                each = self.predictions.step(group.key, rows) / len(sharing)
                seconds += sum(self.predictions.left(task, each) for task in tasks)
        return seconds

    def seconds_left(self, work: Work) -> dict[int, float]:
        """Return what is left of each request of a unit, by ident, in predicted seconds.

        As far as they share steps, they go on sharing them.
        """
        left = {}
        for task in self.present(work.idents):
            rows = work.rows if isinstance(work, Step) else task.rows
            left[task.ident] = self.predictions.left(task, self.predictions.step(task.key, rows))
        return left

    def seconds_to_pictures(self) -> dict[int, float]:
        """Return the predicted seconds until each request has its picture, by ident, if none comes.

        One after the other in order of due time, which is right for those that wait; of those that
        share their steps already only the last one is. Those that are leaving are left out.
        """
        each = {}
        for key, group in self._groups.items():
            sharing, rows = self._share(group.tasks)
            each[key] = self.predictions.step(key, rows) / len(sharing)
        seconds, until = {}, 0.0
        for task in self._by_due():
            until += self.predictions.left(task, each[task.key])
            seconds[task.ident] = max(until, self.predictions.alone(task))
        return seconds

    # Choosing

    def _able(self, tasks: Iterable[RequestState]) -> Iterator[RequestState]:
        """Those that can be worked on: with all places taken, only those that hold one."""
        full = self._places >= self.config.max_places
        return (task for task in tasks if task.prepared and (task.holds_place or not full))

    def _unit(self, leader: RequestState, mates: Sequence[RequestState], now: float | None) -> Work:
        """The leader's next unit; ``mates`` (the leader among them) may share it."""
        key = leader.key
        if leader.denoised:
            parts, seconds = self.predictions.parts(key), self.predictions.decode_part(key)
            others = self._decoding_with(leader, mates, seconds, now) if parts == 1 else ()
            seconds *= 1 + len(others)
            return Decode(key, leader.ident, leader.parts_done, parts, seconds, others)
        sharing, rows = self._share(mates)
        for task in sharing:
            if not task.encoded:
                parts, seconds = self.predictions.parts(key), self.predictions.encode_part(task)
                return Encode(key, task.ident, task.encode_parts_done, parts, seconds)
        padded = self.config.limits.padded(rows)
        idents = tuple(task.ident for task in sharing)
        guided = tuple(
            (task.guidance, task.rows)
            for task in sharing
            if task.guidance is not ClipGuidancePreset.NONE
        )
        seconds = self.predictions.step(key, rows)
        seconds += sum(self.predictions.guiding(key, *guidance) for guidance in guided)
        return Step(key, idents, rows, padded, seconds, guided)

    def _decoding_with(
        self, leader: RequestState, mates: Sequence[RequestState], seconds: float, now: float | None
    ) -> tuple[int, ...]:
        """Return those who share the leader's decode: as many as a number of ``shared_decodes``
        holds.

        A shared decode ends later than the leader's own: nobody in it may miss a deadline by that.
        ``seconds`` are of one alone; how much less sharing costs is not counted on.
        """
        if leader.key.tile:  # circular padding is the modules' own, one picture at a time
            return ()
        waiting = [leader, *(t for t in mates if t.denoised and t is not leader)]
        for count in sorted(self.config.shared_decodes, reverse=True):
            sharing = waiting[:count]
            nearest = min((t.deadline for t in sharing if t.deadline is not None), default=None)
            in_time = nearest is None or (now is not None and now + count * seconds <= nearest)
            if len(sharing) == count and in_time:
                return tuple(task.ident for task in sharing[1:])
        return ()

    def _share(self, tasks: Sequence[RequestState]) -> tuple[Sequence[RequestState], int]:
        """Return those of ``tasks`` (one group's, in order) that share a step, and their rows.

        The longest run from the front whose every extension added at most ``1 - min_gain`` of what
        the added requests cost alone. Rows that fill up a bucket count as free. One that goes apart
        shares none.
        """
        key = tasks[0].key
        tasks = tasks[:1] if tasks[0].apart else [task for task in tasks if not task.apart]
        limits = self.config.limits
        room = min(limits.rows_for(key), self._groups[key].row_cap)
        rows = best = best_rows = 0
        added_alone = best_seconds = 0.0
        for count, task in enumerate(tasks, 1):
            rows += task.rows
            if best and (rows > room or limits.alone):
                break
            added_alone += self.predictions.step(key, task.rows)
            seconds = self.predictions.step(key, rows)
            if not best or seconds - best_seconds <= (1.0 - self.config.min_gain) * added_alone:
                best, best_rows, best_seconds = count, rows, seconds
                added_alone = 0.0
        return tasks[:best], best_rows
