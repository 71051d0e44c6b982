"""From an engine's configuration to its scheduler's."""

from __future__ import annotations

from models.bundle import ModelBundle
from pipelines.engine.config import EngineConfig
from pipelines.scheduler.batching import StepLimits
from pipelines.scheduler.scheduler import PolicyConfig

SHARED_DECODES = (2, 4)
"""On an H200 four pictures of 512 x 512 took 6.7 ms each in one decode, 8.8 ms alone."""


def make_policy(config: EngineConfig, bundle: ModelBundle) -> PolicyConfig:
    """Return the limits in force for ``bundle``.

    In the exact lane no step is larger than its bucket. Decodes are shared only in graphs, never in
    the exact lane, nor where memory is so short that large pictures go in tiles.
    """
    max_rows, buckets = config.max_rows, config.row_buckets or config.acceleration.row_buckets
    if config.exact:
        max_rows, buckets = min(max_rows, config.exact_rows), (config.exact_rows,)
    shares = config.acceleration.graphs and not config.exact and bundle.vae_tile_above is None
    return PolicyConfig(
        max_queue=config.max_queue,
        max_places=config.max_running_requests,
        limits=StepLimits(max_rows, config.max_pixels, tuple(buckets)),
        shared_decodes=SHARED_DECODES if shares else (),
    )
