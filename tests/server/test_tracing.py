"""OpenTelemetry traces: their spans, what names them in and out, and that they cost nothing off."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from pipelines.request import GenerationResult
from server.observability.tracing import Tracing
from server.settings import Settings
from tests.server.conftest import PATH, MakeClient
from tests.server.stub_engine import StubEngine, StubHandle

ROOT = Path(__file__).resolve().parents[2]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ("queue", "encode", "denoise", "decode")


class StagedHandle(StubHandle):
    """Goes through every stage in a fifth of a second."""

    async def result(self) -> GenerationResult:
        now = time.monotonic()
        for number, stage in enumerate(STAGES):
            self.timeline.extend(stage, now + number / 20, now + (number + 1) / 20)
        return await super().result()


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is exported, in memory instead of sent to the setting's address."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(Tracing, "to", lambda endpoint: tracing)
    monkeypatch.setattr("tests.server.stub_engine.StubHandle", StagedHandle)
    yield exporter
    tracing.close()


@pytest.fixture
def traced(make_client: MakeClient, exporter: InMemorySpanExporter) -> TestClient:
    return make_client(traces_endpoint="http://127.0.0.1:9/v1/traces")


def ask(client: TestClient, picture_file: bytes, **headers: str) -> dict[str, str]:
    files = {"init_image": ("a.png", picture_file)}
    response = client.post(PATH, data={"prompt": "hush"}, files=files, headers=headers)
    return dict(response.headers)


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_is_a_span_with_one_for_each_stage(
    traced: TestClient, exporter: InMemorySpanExporter, picture_file: bytes
) -> None:
    before = time.time_ns()
    ask(traced, picture_file)
    spans = by_name(exporter)
    assert set(spans) == {"POST basic", *STAGES}
    route = spans["POST basic"]
    assert route.parent is None
    assert route.start_time is not None
    assert before <= route.start_time
    for stage in STAGES:
        assert spans[stage].parent == route.context
        assert spans[stage].end_time - spans[stage].start_time == pytest.approx(5e7, abs=1e3)
    for first, second in pairwise(STAGES):
        assert spans[first].end_time == pytest.approx(spans[second].start_time, abs=1e3)
    assert route.attributes is not None
    assert route.attributes["img2img.outcome"] == "success"
    assert route.attributes["img2img.steps"] == 30
    assert "hush" not in str([dict(span.attributes or {}) for span in spans.values()])


def test_the_context_of_the_client_comes_in_and_goes_out(
    traced: TestClient,
    exporter: InMemorySpanExporter,
    picture_file: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="server.access")
    headers = ask(traced, picture_file, traceparent=f"00-{TRACE}-{PARENT}-01")
    route = by_name(exporter)["POST basic"]
    assert route.parent is not None
    assert f"{route.parent.span_id:016x}" == PARENT
    assert f"{route.context.trace_id:032x}" == TRACE
    assert headers["traceresponse"] == f"00-{TRACE}-{route.context.span_id:016x}-01"
    assert caplog.records[-1].fields["trace_id"] == TRACE


def test_what_the_client_does_not_sample_is_not_exported(
    traced: TestClient, exporter: InMemorySpanExporter, picture_file: bytes
) -> None:
    headers = ask(traced, picture_file, traceparent=f"00-{TRACE}-{PARENT}-00")
    assert headers["traceresponse"].startswith(f"00-{TRACE}-")
    assert headers["traceresponse"].endswith("-00")
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize("broken", ["", "00-0-0-01", "x" * 5000, f"00-{'0' * 32}-{PARENT}-01"])
def test_a_context_that_is_none_begins_a_trace(
    traced: TestClient, exporter: InMemorySpanExporter, picture_file: bytes, broken: str
) -> None:
    ask(traced, picture_file, traceparent=broken)
    assert by_name(exporter)["POST basic"].parent is None


def test_a_failure_is_an_error_and_a_probe_is_no_trace(
    traced: TestClient, engine: StubEngine, exporter: InMemorySpanExporter, picture_file: bytes
) -> None:
    traced.get("/health/live")
    engine.outcome = RuntimeError("inside")
    ask(traced, picture_file)
    route = by_name(exporter)["POST basic"]
    assert not route.status.is_ok
    assert route.attributes is not None
    assert route.attributes["http.response.status_code"] == 500


def test_without_the_setting_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from server.app import create_app; from server.settings import Settings;"
        "create_app(Settings());"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.ex'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_address_is_checked() -> None:
    with pytest.raises(ValueError, match="does not start with http"):
        Settings(traces_endpoint="collector:4317")
