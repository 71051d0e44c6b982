"""OpenTelemetry traces of requests: a span for the route, one for each of the engine's stages.

All are made when a request ends, of the times in its record; the route's begins with the request,
because the answer's headers name it. Imported only where `IMG2IMG_TRACES_ENDPOINT` is set: the
libraries are an extra, `tracing`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server import __version__
from server.observability.request_record import RequestObserver, RequestRecord

RESPONSE_HEADER = "traceresponse"
"""The route's span for the client, in the form of `traceparent` (W3C Trace Context, Level 2)."""

_SERVICE = "img2img-server"
_propagator = TraceContextTextMapPropagator()


class Tracing(RequestObserver):
    """Makes the traces of one application. Sampling is by `OTEL_TRACES_SAMPLER`, all by default."""

    def __init__(self, processor: SpanProcessor) -> None:
        resource = Resource.create({SERVICE_NAME: _SERVICE, SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(_SERVICE, __version__)
        self._routes: dict[int, Span] = {}  # by the record's identity, while a request runs

    @classmethod
    def to(cls, endpoint: str) -> Tracing:
        """Return traces that are sent to a collector, in batches and in a thread of their own."""
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=5)))

    def close(self) -> None:
        """Send what was not sent yet, for some seconds at most. Blocking."""
        self._provider.shutdown()

    def begun(self, record: RequestRecord, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Begin the route's span, a child of the client's if the request names one."""
        if record.is_probe:
            return {}
        span = self._tracer.start_span(
            f"{record.method} {record.api}",
            _propagator.extract(headers),
            SpanKind.SERVER,
            start_time=_ns(record.arrived, _wall_clock()),
        )
        context = span.get_span_context()
        self._routes[id(record)] = span
        record.trace_id = f"{context.trace_id:032x}"
        flags = f"{context.trace_flags:02x}"
        return {RESPONSE_HEADER: f"00-{record.trace_id}-{context.span_id:016x}-{flags}"}

    def ended(self, record: RequestRecord) -> None:
        """Add the spans of the stages, and end the route's."""
        span = self._routes.pop(id(record), None)
        if span is None:
            return
        within, wall = set_span_in_context(span), _wall_clock()
        for stage, (began, ended) in record.stages.items():
            child = self._tracer.start_span(stage, within, start_time=_ns(began, wall))
            child.end(_ns(ended, wall))
        span.set_attributes(_attributes(record))
        if record.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(_ns(record.arrived + record.seconds, wall))


def _attributes(record: RequestRecord) -> dict[str, str | int | float]:
    """Return what the access log says of a request too, never a prompt."""
    attributes: dict[str, str | int | float] = {
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "img2img.api": record.api,
        "img2img.outcome": record.outcome,
        "img2img.request_id": record.request_id,
    }
    if record.generations:
        first = record.generations[0]
        attributes |= {
            "img2img.model": record.model or "",
            "img2img.width": first.width,
            "img2img.height": first.height,
            "img2img.steps": first.steps,
            "img2img.sampler": str(first.sampler),
            "img2img.images": record.images,
            "img2img.evaluations": record.evaluations,
            "img2img.rows_shared": record.rows_shared,
        }
    return attributes


def _wall_clock() -> int:
    """Return the nanoseconds by which the clock on the wall is ahead of `time.monotonic()`."""
    return time.time_ns() - time.monotonic_ns()


def _ns(moment: float, wall: int) -> int:
    """Return a moment of `time.monotonic()` as nanoseconds of the clock on the wall."""
    return int(moment * 1e9) + wall
