"""Inputs and outputs of the scheduler: tasks in, units of work and refusals out.

Pure data: no torch, and no clock of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from pipelines.request import ClipGuidancePreset
from pipelines.scheduler.batching import GroupKey


@dataclass(eq=False)
class Task:
    """A request as the policy sees it. Times are in seconds of any one clock.

    ``rows`` is 1 or 2 (`guidance_rows`), ``evaluations`` the length of its sampler table. Nothing
    is planned for it before it is ``prepared``: its noise is drawn elsewhere meanwhile. ``allowed``
    is how many seconds it may take in all, which may have begun before it came here; left out, as
    many as lie between its arrival and its deadline. ``text_chunks`` are encoded with its picture,
    unless they are cached.
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
    due: float = field(default=0.0, init=False)
    encoded: bool = field(default=False, init=False)
    encode_parts_done: int = field(default=0, init=False)
    done: int = field(default=0, init=False)
    parts_done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.allowed is None and self.deadline is not None:
            self.allowed = self.deadline - self.arrived

    @property
    def denoised(self) -> bool:
        return self.done >= self.evaluations

    @property
    def holds_place(self) -> bool:
        """Return whether something of it is on the device."""
        return self.encoded or self.encode_parts_done > 0


@dataclass(frozen=True)
class Encode:
    """Part ``part`` (from 0) of ``parts`` of encoding one request's picture, its prompt first."""

    key: GroupKey
    ident: int
    part: int
    parts: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """One evaluation of every request in ``idents``: ``rows`` U-Net rows, padded to ``padded``.

    ``guided`` has the preset and the rows of each request among them that CLIP guides.
    """

    key: GroupKey
    idents: tuple[int, ...]
    rows: int
    padded: int
    seconds: float
    guided: tuple[tuple[ClipGuidancePreset, int], ...] = ()


@dataclass(frozen=True)
class Decode:
    """Part ``part`` (from 0) of ``parts`` of one request's decode.

    In one part others of its group, ``mates``, may share it.
    """

    key: GroupKey
    ident: int
    part: int
    parts: int
    seconds: float
    mates: tuple[int, ...] = ()

    @property
    def idents(self) -> tuple[int, ...]:
        """All requests that it decodes."""
        return (self.ident, *self.mates)


Work: TypeAlias = Encode | Step | Decode
"""A unit of work; ``seconds`` is its predicted cost."""


@dataclass(frozen=True)
class Refusal:
    """A request that is not taken: the reason, and the seconds after which to try again."""

    reason: str
    retry_after: float


@dataclass(frozen=True)
class TooLong:
    """A request is not taken because it alone takes ``seconds``, more than it is ``allowed``."""

    seconds: float
    allowed: float
