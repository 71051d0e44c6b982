"""A call of a replica, and what that says of it, event by event.

Plain values, which travel between machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.errors import GenerationError
from pipelines.request import GenerationRequest, GenerationResult, Progress
from pipelines.scheduler.cost_model import SizeCost
from pipelines.timeline import Timeline

Spans = dict[str, tuple[float, float]]
"""As in a timeline, but from the call's arrival: machines do not share `time.monotonic()`."""


@dataclass(frozen=True)
class Waited:
    """How long a call may take: ``timeout`` seconds from its arrival, ``elapsed`` ago; and whether
    a replica that was lost had ``taken`` it."""

    timeout: float | None = None
    elapsed: float = 0.0
    taken: bool = False


@dataclass(frozen=True)
class Call:
    """An image to make. ``eager`` asks for all progress from the beginning."""

    ident: str
    request: GenerationRequest
    waited: Waited
    eager: bool


@dataclass(frozen=True)
class Facts:
    """What a replica runs: the model's name, its device and dtype, the CLIP model that guides, and
    what images of some sizes take there."""

    model: str
    device: str
    dtype: str
    clip: str | None
    costs: Sequence[SizeCost] = ()


@dataclass(frozen=True)
class Accepted:
    """The engine has taken the call, which adds ``seconds`` to its backlog."""

    seconds: float


@dataclass(frozen=True)
class Lost:
    """The replica cannot finish it, and another can: it is stopping, or its engine is broken."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The engine's own refusal or failure of this request."""

    error: GenerationError


@dataclass(frozen=True)
class Stages:
    """A timeline on its way to another machine."""

    spans: Spans = field(default_factory=dict)
    evaluations: int = 0
    rows: int = 0

    @classmethod
    def of(cls, timeline: Timeline, arrived: float) -> Stages:
        """Return what is in ``timeline``, from ``arrived`` on."""
        spans = {s: (a - arrived, b - arrived) for s, (a, b) in timeline.spans.items()}
        return cls(spans, timeline.evaluations, timeline.rows)

    def write_to(self, timeline: Timeline, arrived: float) -> None:
        """Put it into ``timeline``, in whose clock the call arrived at ``arrived``."""
        timeline.spans |= {s: (a + arrived, b + arrived) for s, (a, b) in self.spans.items()}
        timeline.evaluations, timeline.rows = self.evaluations, self.rows


@dataclass(frozen=True)
class Finished:
    """The image."""

    result: GenerationResult
    stages: Stages


Event = Accepted | Progress | Lost | Failed | Finished
"""Progress has its preview only where that is a new one."""
