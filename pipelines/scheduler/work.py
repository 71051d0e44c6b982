"""Inputs and outputs of the scheduler: tasks in, units of work and refusals out.

Pure data: no torch, and no clock of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pipelines.request import ClipGuidancePreset
from pipelines.scheduler.batching import GroupKey


@dataclass(frozen=True)
class Encode:
    """Part ``part`` (from 0) of ``parts`` of encoding one request's picture, its prompt first."""

    key: GroupKey
    ident: int
    part: int
    parts: int
    seconds: float

    @property
    def idents(self) -> tuple[int, ...]:
        return (self.ident,)


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
    """A request that is not taken: the reason, and the seconds after which to try again.

    ``together`` says that the reason is its own batch, for which waiting does not help.
    """

    reason: str
    retry_after: float
    together: bool = False


@dataclass(frozen=True)
class TooLong:
    """A request is not taken because it alone takes ``seconds``, more than it is ``allowed``."""

    seconds: float
    allowed: float
