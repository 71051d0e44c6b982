"""The state of a request: the counters that the scheduler owns and what they are read for.

No torch: tensors of a request are the model runner's, by ``ident``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.errors import GenerationError
from pipelines.handle import GenerationHandle
from pipelines.request import (
    ClipGuidancePreset,
    GenerationRequest,
    GenerationResult,
    Progress,
)
from pipelines.scheduler.batching import GroupKey
from pipelines.timeline import Timeline


@dataclass(eq=False)
class RequestState:
    """A request that waits or runs. Times are in seconds of any one clock.

    ``rows`` is 1 or 2 (`guidance_rows`), ``evaluations`` the length of its sampler program. Nothing
    is planned for it before it is ``prepared``: its noise is drawn elsewhere meanwhile. ``allowed``
    is how many seconds it may take in all, which may have begun before it came here; left out, as
    many as lie between its arrival and its deadline. ``text_chunks`` are encoded with its picture,
    unless they are cached. A request without a ``handle`` is a simulated one.

    ``leaving`` says that nothing more is planned for it: its last unit runs, or one has failed.
    """

    ident: int
    key: GroupKey
    rows: int
    evaluations: int
    arrived: float
    deadline: float | None = None
    prepared: bool = True
    guidance: ClipGuidancePreset = ClipGuidancePreset.NONE
    allowed: float | None = None
    text_chunks: int = 0
    handle: GenerationHandle | None = None
    due: float = field(default=0.0, init=False)
    encoded: bool = field(default=False, init=False)
    encode_parts_done: int = field(default=0, init=False)
    done: int = field(default=0, init=False)
    parts_done: int = field(default=0, init=False)
    leaving: bool = field(default=False, init=False)
    timings: dict[str, float] = field(default_factory=dict, init=False)
    timeline: Timeline = field(default_factory=Timeline, init=False)

    def __post_init__(self) -> None:
        if self.allowed is None and self.deadline is not None:
            self.allowed = self.deadline - self.arrived
        if self.handle is not None:
            self.timeline = self.handle.timeline

    @property
    def denoised(self) -> bool:
        return self.done >= self.evaluations

    @property
    def holds_place(self) -> bool:
        """Return whether something of it is on the device."""
        return self.encoded or self.encode_parts_done > 0

    @property
    def cancelled(self) -> bool:
        return self.handle is not None and self.handle.cancelled

    @property
    def request(self) -> GenerationRequest:
        assert self.handle is not None
        return self.handle.request

    def spend(self, stage: str, seconds: float) -> None:
        """Add to the seconds of a stage of this request."""
        self.timings[stage] = self.timings.get(stage, 0.0) + seconds

    def publish(self, progress: Progress) -> None:
        """Tell whoever listens how far the request is."""
        if self.handle is not None:
            self.handle.publish(progress)

    def end(self, outcome: GenerationResult | GenerationError) -> None:
        """Hand the result, or the error, to whoever waits for it."""
        if self.handle is None:
            return
        if isinstance(outcome, GenerationError):
            self.handle.fail(outcome)
        else:
            self.handle.succeed(outcome)
