"""The configuration of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipelines.engine.warmup import FastPath
from pipelines.engine.watch import Patience
from pipelines.scheduler.batching import StepLimits
from pipelines.scheduler.scheduler import PolicyConfig

SHARED_DECODES = (2, 4)
"""On an H200 four pictures of 512 x 512 took 6.7 ms each in one decode, 8.8 ms alone."""


@dataclass(frozen=True)
class EngineConfig:
    """The limits of an engine.

    ``max_queue`` requests wait or run at most; ``max_running_requests`` run at a time.
    ``row_buckets`` are the numbers of U-Net rows that a step is padded to; empty means those of the
    fast path, if any. ``exact`` runs every step in one fixed bucket of ``exact_rows``, so that a
    picture's bytes do not depend on the crowd. ``patience`` says when work is taken to hang.
    """

    max_queue: int = 64
    max_running_requests: int = 16
    limits: StepLimits = field(default_factory=StepLimits)
    row_buckets: Sequence[int] = ()
    exact: bool = False
    exact_rows: int = 8
    warm_up: bool = True
    fast: FastPath = field(default_factory=FastPath)
    patience: Patience = field(default_factory=Patience)

    @property
    def step_limits(self) -> StepLimits:
        """The limits in force: in the exact lane no step is larger than its bucket."""
        if not self.exact:
            return self.limits
        return replace(self.limits, max_rows=min(self.limits.max_rows, self.exact_rows))

    @property
    def step_buckets(self) -> Sequence[int]:
        return (self.exact_rows,) if self.exact else self.row_buckets or self.fast.buckets

    @property
    def shared_decodes(self) -> Sequence[int]:
        """The numbers of pictures that share a decode: only in graphs, never in the exact lane."""
        return () if self.exact or not self.fast.acceleration.graphs else SHARED_DECODES

    @property
    def policy(self) -> PolicyConfig:
        """The scheduler's part of this."""
        return PolicyConfig(
            shared_decodes=self.shared_decodes,
            max_queue=self.max_queue,
            max_places=self.max_running_requests,
            limits=self.step_limits,
            row_buckets=self.step_buckets,
        )
