"""The state of a request: the counters that the scheduler owns and what they are read for.

No torch: tensors of a request are the model runner's, by ``ident``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.errors import DeadlineExceeded, GenerationCancelled, GenerationError
from pipelines.handle import GenerationHandle
from pipelines.request import (
    ClipGuidancePreset,
    GenerationRequest,
    GenerationResult,
    Pixels,
    Progress,
    Stage,
)
from pipelines.samplers.programs import SamplerProgram
from pipelines.samplers.schedules import denoising_steps
from pipelines.scheduler.batching import GroupKey
from pipelines.timeline import Timeline


@dataclass(eq=False)
class RequestState:
    """A request that waits or runs. Times are in seconds of any one clock.

    ``rows`` is 1 or 2 (`guidance_rows`), ``evaluations`` the length of its sampler program. Nothing
    is planned for it before it is ``prepared``: its noise is drawn and its ``program`` compiled
    elsewhere meanwhile; ``failure`` says why that could not be done. ``allowed``
    is how many seconds it may take in all, which may have begun before it came here; left out, as
    many as lie between its arrival and its deadline. ``text_chunks`` are encoded with its picture,
    unless they are cached. A request without a ``handle`` is a simulated one. One that another
    engine had ``taken`` is not refused for the sake of those that were taken here. Those of one
    ``batch``, where it has a name, were asked for together.

    ``leaving`` says that nothing more is planned for it: its last unit runs, or one has failed.
    Of its ``evaluations`` ``done`` were launched and ``ended`` have ended, one less on a device
    that the host runs ahead of; it is below 0 where that one is taken back. ``preview`` is the
    latest that was drawn. One that goes ``apart`` shares no step: its guidance may have taken the
    memory of one.
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
    taken: bool = False
    batch: str = ""
    apart: bool = field(default=False, init=False)
    program: SamplerProgram | None = field(default=None, init=False)
    due: float = field(default=0.0, init=False)
    encoded: bool = field(default=False, init=False)
    encode_parts_done: int = field(default=0, init=False)
    done: int = field(default=0, init=False)
    ended: int = field(default=0, init=False)
    preview: Pixels | None = field(default=None, init=False)
    failure: GenerationError | None = field(default=None, init=False)
    parts_done: int = field(default=0, init=False)
    leaving: bool = field(default=False, init=False)
    timings: dict[str, float] = field(default_factory=dict, init=False)
    timeline: Timeline = field(default_factory=Timeline, init=False)

    def __post_init__(self) -> None:
        if self.allowed is None and self.deadline is not None:
            self.allowed = self.deadline - self.arrived
        if self.handle is not None:
            self.timeline = self.handle.timeline
            self.batch = self.handle.request.batch

    @property
    def denoised(self) -> bool:
        return self.done >= self.evaluations

    @property
    def holds_place(self) -> bool:
        """Return whether something of it is on the device."""
        return self.encoded or self.encode_parts_done > 0

    @property
    def has_picture(self) -> bool:
        """Return whether there is a picture to encode, and not its text alone."""
        return self.handle is None or not self.request.from_noise

    def goes_with(self, other: RequestState) -> bool:
        """Return whether both were asked for together."""
        return bool(self.batch) and self.batch == other.batch

    @property
    def cancelled(self) -> bool:
        return self.handle is not None and self.handle.cancelled

    def lost(self, now: float) -> GenerationError | None:
        """Return why nothing comes of it any more, or None.

        It could not be prepared, was withdrawn, or its deadline has passed before its last unit.
        """
        if self.failure is not None:
            return self.failure
        if self.cancelled:
            return GenerationCancelled("the request was withdrawn")
        if self.deadline is not None and now >= self.deadline and not self.leaving:
            return DeadlineExceeded("the request took longer than it may")
        return None

    @property
    def request(self) -> GenerationRequest:
        assert self.handle is not None
        return self.handle.request

    def spend(self, stage: str, seconds: float) -> None:
        """Add to the seconds of a stage of this request."""
        self.timings[stage] = self.timings.get(stage, 0.0) + seconds

    def publish(self, seconds_left: float, *, queue_position: int = 0) -> None:
        """Tell whoever listens how far the request is."""
        if self.handle is None:
            return
        ended, steps = max(0, self.ended), self.request.steps
        step = steps - denoising_steps(steps, self.request.strength)  # skipped by its strength
        if self.program is not None:
            step = self.program.steps_done(ended)
        stage = Stage.DECODING if self.ended >= self.evaluations else Stage.DENOISING
        if not self.encoded:
            stage = Stage.QUEUED if queue_position else Stage.ENCODING
        self.handle.publish(
            Progress(
                step=step,
                steps=steps,
                evaluation=ended,
                evaluations=self.evaluations,
                queue_position=queue_position,
                preview=self.preview,
                stage=stage,
                seconds_left=seconds_left,
            )
        )

    def end(self, outcome: GenerationResult | GenerationError) -> None:
        """Hand the result, or the error, to whoever waits for it."""
        if self.handle is None:
            return
        if isinstance(outcome, GenerationError):
            self.handle.fail(outcome)
        else:
            self.handle.succeed(outcome)


def due_order(state: RequestState) -> tuple[float, float, int]:
    """Return the key of the order in which requests are worked on."""
    return state.due, state.arrived, state.ident
