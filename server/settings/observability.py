"""What the server tells of itself: metrics, traces, what its log says of requests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from server.settings.base import Choice, Subject


class ObservabilitySettings(Subject):
    """Metrics, traces and the access log."""

    metrics: Annotated[Literal["auto", "on", "off"], Choice] = Field(
        "auto",
        description="Prometheus' `/metrics` on the port of the API: `auto` (where that is loopback "
        "and metrics have no port of their own), `on` (wherever it listens, without a key), or "
        "`off` (nowhere at all).",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of their own for the metrics, on the same address; 0 picks a free one.",
    )
    log_prompts: bool = Field(
        False, description="Put prompts into the access log, which has none otherwise."
    )
    traces_endpoint: str = Field(
        "",
        description="URL that OpenTelemetry traces are sent to, OTLP over HTTP, such as "
        "`http://collector:4318/v1/traces`; blank: none are made. Needs the extra `tracing`.",
    )

    @field_validator("traces_endpoint")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("does not start with http:// or https://")
        return url
