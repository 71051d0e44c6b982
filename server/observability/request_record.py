"""The record of a request: what its log line, its metrics and its trace are made of at its end.

It is begun where the request comes in. Whoever learns something of the request, in whatever task or
thread of it, writes into `current_record()`; nothing is passed along for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.timeline import STAGES, Timeline

if TYPE_CHECKING:
    from pipelines.request import GenerationRequest

CLIENT_GONE = 499
"""The status of a request whose client left; nobody receives it."""

APIS: Mapping[str, str] = {
    "/api/generate/": "basic",
    "/v1/images": "openai",
    "/v1/deployments/": "openai",
    "/openai/": "openai",
    "/v1/models": "openai",
    "/v1/generation/": "stability",
    "/v1/engines/": "stability",
    "/v1/user/": "stability",
    "/v2beta/": "stability",
    "/sdapi/": "a1111",
}
"""The API that a path belongs to, by how the path begins."""
OTHER_API = "other"
ALL_APIS = sorted({*APIS.values(), OTHER_API})
PROBES = ("/health/live", "/health/ready", "/-/healthz", "/metrics")

OUTCOMES: Mapping[int, str] = {
    401: "unauthorized",
    402: "no_credits",
    403: "unauthorized",
    404: "not_found",
    405: "not_found",
    408: "timeout",
    409: "conflict",
    429: "rate_limited",
    CLIENT_GONE: "disconnected",
    503: "unavailable",
    504: "timeout",
}
"""What became of a request, by its status; others are `success`, `invalid` or `failed`."""
ALL_OUTCOMES = sorted({*OUTCOMES.values(), "success", "invalid", "failed"})


def api_of(path: str) -> str:
    """Return the API that a path belongs to; `other` for whatever is of none."""
    return next((api for start, api in APIS.items() if path.startswith(start)), OTHER_API)


def outcome_of(status: int) -> str:
    """Return one of a dozen words for what a status means to whoever runs the server."""
    if status < 400:
        return "success"
    return OUTCOMES.get(status, "invalid" if status < 500 else "failed")


@dataclass
class Credits:
    """Tenths of a credit that the request held, paid, and gave back."""

    reserved: int = 0
    charged: int = 0
    released: int = 0

    def end(self, charged: int = 0) -> None:
        """Note what was charged of what was held; the rest is given back."""
        self.charged = charged
        self.released = self.reserved - charged


@dataclass
class RequestRecord:
    """What is known of a request; None or empty where it did not get that far.

    ``path`` is as it came, ``resource`` without the prefix of a proxy. ``arrived`` is in
    `time.monotonic()` seconds, ``seconds`` is from there to the end. ``status`` is that of the
    answer, also of one that a stream of events ended with. ``generations`` are the images that the
    engine was asked for and ``timelines`` what became of them there, ``images`` those it made.
    """

    method: str
    path: str
    resource: str
    client: str
    request_id: str
    arrived: float = field(default_factory=time.monotonic)
    status: int = CLIENT_GONE
    key: str | None = None
    model: str | None = None
    generations: list[GenerationRequest] = field(default_factory=list)
    timelines: list[Timeline] = field(default_factory=list)
    images: int = 0
    replayed: bool = False
    credits: Credits | None = None
    trace_id: str | None = None
    seconds: float = 0.0

    @property
    def api(self) -> str:
        """Return the API that was asked, `other` for whatever is none."""
        return api_of(self.resource)

    @property
    def is_probe(self) -> bool:
        """Return whether it came from a machine that watches, as one does every few seconds."""
        return self.resource in PROBES

    @property
    def outcome(self) -> str:
        """Return what became of the request, in one of a dozen words."""
        return outcome_of(self.status)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Return the seconds of each stage that an image of it reached, from first to last."""
        return {stage: end - begin for stage, (begin, end) in self.stages.items()}

    @property
    def stages(self) -> dict[str, tuple[float, float]]:
        """Return when each stage began and ended, over all of its images."""
        spans: dict[str, tuple[float, float]] = {}
        for stage in STAGES:
            found = [t.spans[stage] for t in self.timelines if stage in t.spans]
            if found:
                spans[stage] = min(b for b, _ in found), max(e for _, e in found)
        return spans

    @property
    def evaluations(self) -> int:
        """Return the U-Net evaluations that were done for it."""
        return sum(timeline.evaluations for timeline in self.timelines)

    @property
    def rows_shared(self) -> float:
        """Return the mean U-Net rows of the steps that it was in; 0 before the first."""
        rows = sum(timeline.rows for timeline in self.timelines)
        return rows / self.evaluations if self.evaluations else 0.0

    def asked(self, generation: GenerationRequest, model: str) -> None:
        """Note an image that the engine is about to be asked for."""
        self.generations.append(generation)
        self.model = model


record_variable: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)
"""Set while a request is handled."""


def current_record() -> RequestRecord:
    """Return the record of the request being handled; outside one, one that nobody reads."""
    return record_variable.get() or RequestRecord("", "", "", "", "")


class RequestObserver:
    """Hears of every request: when it begins, and when its record is complete."""

    def begun(self, record: RequestRecord, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return headers to answer with; ``headers`` are the request's, by names in any case."""
        return {}

    def ended(self, record: RequestRecord) -> None:
        """Note a request that has ended, whatever the way. Called on the event loop."""
