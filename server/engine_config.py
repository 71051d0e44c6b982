"""From settings, and what fits into the device's memory, to the engine's configuration."""

from __future__ import annotations

from models.acceleration.modes import choose_acceleration
from models.bundle import ModelBundle
from pipelines.engine.config import EngineConfig
from server.memory_plan import MemoryPolicy
from server.settings import Settings


def engine_config(
    settings: Settings, bundle: ModelBundle, memory: MemoryPolicy, *, warm_up: bool = True
) -> EngineConfig:
    """Return the configuration of an engine that runs ``bundle``, which is loaded."""
    return EngineConfig(
        max_queue=settings.max_queue,
        max_running_requests=settings.max_running_requests,
        max_rows=memory.limits.max_rows,
        max_pixels=memory.limits.max_pixels,
        exact=settings.batch_invariant,
        exact_rows=memory.exact_rows,
        warm_up=warm_up,
        acceleration=choose_acceleration(settings.acceleration, bundle.device),
        capture_sizes=settings.capture_sizes_in_pixels,
        compile_folder=settings.compile_folder,
        # A unit that outlasts the limit of every request has failed all of those that wait.
        hang_seconds=min(EngineConfig.hang_seconds, settings.request_timeout),
    )
