"""Prometheus' metrics of a server: the requests by their records, the engine by its snapshot.

Every label has a few values that are known beforehand, but for the name of the one model: nothing
that a client sends becomes one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from pipelines.engine.statistics import SECONDS
from server.observability.engine_collector import PREFIX, EngineCollector, MeasuredModel
from server.observability.request_record import (
    ALL_APIS,
    ALL_OUTCOMES,
    RequestObserver,
    RequestRecord,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series each that nobody reads

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
NO_MODEL = "none"
"""The label of what came while no model was loaded."""


class Metrics(RequestObserver):
    """The metrics of one application, in a registry of their own."""

    def __init__(self, model: Callable[[], MeasuredModel | None]) -> None:
        self._model = model
        self.registry = CollectorRegistry()
        self._requests = Counter(
            f"{PREFIX}requests",
            "Requests by what was asked and what became of them, probes left out.",
            ["api", "outcome", "model"],
            registry=self.registry,
        )
        self._latency = Histogram(
            f"{PREFIX}e2e_request_latency_seconds",
            "Seconds from a request's arrival to the end of its answer, where that was images.",
            ["api"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._credits = Counter(
            f"{PREFIX}credits",
            "Credits reserved, charged, and released by requests.",
            ["kind"],
            registry=self.registry,
        )
        for kind in ("reserved", "charged", "released"):
            self._credits.labels(kind)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(EngineCollector(model))

    def ended(self, record: RequestRecord) -> None:
        """Count a request."""
        if record.is_probe:
            return
        self._requests.labels(record.api, record.outcome, self._model_name()).inc()
        if record.outcome == "success" and record.images:
            self._latency.labels(record.api).observe(record.seconds)
        if record.credits is not None:
            for kind in ("reserved", "charged", "released"):
                self._credits.labels(kind).inc(getattr(record.credits, kind) / 10)

    def _model_name(self) -> str:
        model = self._model()
        return NO_MODEL if model is None else model.name

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format, whatever else a client would take.

        The library's OpenMetrics has underscores for the colons in names.
        """
        # From the start at 0: a rate takes a series that begins at 1 for none.
        name = self._model_name()
        for api, outcome in product(ALL_APIS, ALL_OUTCOMES):
            self._requests.labels(api, outcome, name)
            self._latency.labels(api)
        return generate_latest(self.registry)
