"""From an engine's configuration to its scheduler's."""

from __future__ import annotations

from models.bundle import ModelBundle
from pipelines.engine.config import EngineConfig
from pipelines.scheduler.batching import StepLimits
from pipelines.scheduler.scheduler import PolicyConfig

SHARED_DECODES = (2, 4)
"""On an H200 four pictures of 512 x 512 took 6.7 ms each in one decode, 8.8 ms alone."""

ROWS_ALONE = 2
"""Rows of one request with guidance; one without is padded to as many."""


def make_policy(config: EngineConfig, bundle: ModelBundle) -> PolicyConfig:
    """Return the limits in force for ``bundle``.

    In the exact lane no step is larger than its bucket, and on a card it holds one request:
    measured on an H200, some of cuDNN's convolutions round by a row's place in the batch, so equal
    numbers of rows do not make equal bytes. Decodes are shared only in graphs, never in the exact
    lane, nor where memory is so short that large pictures go in tiles.
    """
    max_rows, buckets = config.max_rows, config.row_buckets or config.acceleration.row_buckets
    alone = config.exact and bundle.device.type == "cuda"
    if config.exact:
        exact_rows = ROWS_ALONE if alone else config.exact_rows
        max_rows, buckets = min(max_rows, exact_rows), (exact_rows,)
    shares = config.acceleration.graphs and not config.exact and bundle.vae_tile_above is None
    return PolicyConfig(
        max_queue=config.max_queue,
        max_places=config.max_running_requests,
        limits=StepLimits(max_rows, config.max_pixels, tuple(buckets), alone),
        shared_decodes=SHARED_DECODES if shares else (),
    )
