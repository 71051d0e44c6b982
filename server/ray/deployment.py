"""The engines as an application of Ray Serve: one replica a card, chosen by backlog.

For `serve deploy` and RayService: `import_path: server.ray.deployment:application`, with the fields
of `EngineOptions` as `args`. A change of `args` rolls over the replicas, the old ones first; with
`surge_percent` new ones start first, on spare cards.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingContext,
    AutoscalingPolicy,
    RequestRouterConfig,
)

from pipelines.request import Pixels
from server.observability.logs import configure_logging
from server.ray.route import Route
from server.replicas.balance import replicas_for
from server.replicas.child import LOAD_MODEL, starter_of
from server.replicas.events import Call, Event, Facts
from server.replicas.replica import EngineReplica
from server.settings import Settings

APP = "img2img"
ENGINE = "Engine"
STATS_SECONDS = 0.1
"""Between two reports of a replica: Serve's 10 s are many of our requests."""
SEND_SECONDS = 10.0
"""What a replica that stops gets beyond the longest request."""


class EngineOptions(BaseModel):
    """What `args` may say of the engines. Everything else is in the replicas' environment.

    ``replicas`` run, or between ``min_replicas`` and ``max_replicas`` as many as bring the work of
    each down to ``target_backlog_seconds``. A replica takes ``gpus`` and ``cpus`` of a node, which
    are counted and not measured. An update starts ``surge_percent`` of them before it stops old
    ones. ``settings`` win over the environment; ``starter`` is
    `module:function` of what makes the engine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: Annotated[int, Field(ge=1)] = 1
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int | None, Field(ge=1)] = None
    target_backlog_seconds: Annotated[float, Field(gt=0)] = 5.0
    upscale_delay_seconds: Annotated[float, Field(ge=0)] = 2.0
    downscale_delay_seconds: Annotated[float, Field(ge=0)] = 120.0
    gpus: Annotated[float, Field(ge=0)] = 1.0
    cpus: Annotated[float, Field(ge=0)] = 1.0
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    near_seconds: Annotated[float, Field(ge=0)] = 0.1
    health_check_seconds: Annotated[float, Field(gt=0)] = 2.0
    settings: dict[str, Any] = Field(default_factory=dict)
    starter: str = LOAD_MODEL

    @model_validator(mode="after")
    def _bounds(self) -> EngineOptions:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas}, below min_replicas")
        return self


class Engine:
    """A replica as Serve sees it."""

    def __init__(self, options: EngineOptions) -> None:
        settings = Settings(**options.settings)
        configure_logging(settings.log_level, settings.log_format)
        model = starter_of(options.starter)(settings)
        model.engine.start()
        self._replica = EngineReplica(model, settings.capture_sizes_in_pixels)

    async def generate(self, call: Call, route: Route) -> AsyncGenerator[Event]:
        """Make an image, event by event."""
        events = self._replica.generate(call)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def facts(self, route: Route) -> Facts:
        """Return what it runs."""
        return self._replica.facts()

    async def watch(self, ident: str, route: Route) -> None:
        """Send all progress of a call from now on."""
        self._replica.watch(ident)

    async def score(self, picture: Pixels, route: Route) -> float:
        """Return the safety checker's score."""
        return await self._replica.score(picture)

    def record_routing_stats(self) -> dict[str, Any]:
        """Say how it is, for the router of every front."""
        return self._replica.report().as_stats()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Say how much it has to do, for `BacklogPolicy`."""
        return {"backlog_seconds": self._replica.report().backlog_seconds}

    def check_health(self) -> None:
        """Raise where only another replica helps."""
        self._replica.check()

    def __del__(self) -> None:
        if (replica := self.__dict__.get("_replica")) is not None:
            replica.close()


class BacklogPolicy:
    """As many replicas as bring the predicted work of each down to ``target_seconds``."""

    def __init__(self, target_seconds: float) -> None:
        self._target = target_seconds

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return how many replicas there are to be; Serve keeps that within its bounds."""
        backlogs = context.aggregated_metrics.get("backlog_seconds", {})
        calls = max(1.0, context.total_num_requests or 0.0)
        each = sum(backlogs.values()) / calls
        queued = context.total_queued_requests or 0.0
        return replicas_for(backlogs.values(), queued, each, self._target), {}


def application(args: EngineOptions | dict[str, Any]) -> serve.Application:
    """Return the application for `serve.run`, or for a config that names it and has ``args``."""
    options = EngineOptions.model_validate(args)
    settings = Settings(**options.settings)
    longest = settings.request_timeout + SEND_SECONDS
    return (
        serve.deployment(name=ENGINE)(Engine)
        .options(
            # An engine that is full says so itself, with the seconds after which to ask again.
            max_ongoing_requests=2 * settings.max_queue + 16,
            ray_actor_options={"num_gpus": options.gpus, "num_cpus": options.cpus},
            request_router_config=RequestRouterConfig(
                request_router_class="server.ray.router:BacklogRouter",
                request_router_kwargs={
                    "near_seconds": options.near_seconds,
                    "patience": settings.replica_patience,
                },
                request_routing_stats_period_s=STATS_SECONDS,
            ),
            logging_config={"log_level": "WARNING", "enable_access_log": False},
            health_check_period_s=options.health_check_seconds,
            health_check_timeout_s=2 * options.health_check_seconds,
            graceful_shutdown_timeout_s=math.ceil(longest),
            max_surge_percent=options.surge_percent,
            **_numbers(options),
        )
        .bind(options)
    )


def _numbers(options: EngineOptions) -> dict[str, Any]:
    if options.max_replicas is None:
        return {"num_replicas": options.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            metrics_interval_s=0.5,
            look_back_period_s=2,
            upscale_delay_s=options.upscale_delay_seconds,
            downscale_delay_s=options.downscale_delay_seconds,
            aggregation_function="max",
            policy=AutoscalingPolicy(
                policy_function="server.ray.deployment:BacklogPolicy",
                policy_kwargs={"target_seconds": options.target_backlog_seconds},
            ),
        )
    }
