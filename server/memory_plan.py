"""The limits that the device's memory and the settings put on the engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.request import MAX_SIDE
from pipelines.scheduler.batching import GroupKey, StepLimits
from server.settings import MIB, Settings

if TYPE_CHECKING:
    from models.auxiliary.safety_checker import SafetyModel
    from models.bundle import ModelBundle
    from models.memory import MemoryPlan

logger = logging.getLogger(__name__)

LARGEST = MAX_SIDE * MAX_SIDE
EXACT_ROWS = 8
"""Rows of every step of the exact lane, where the memory allows it."""


@dataclass(frozen=True)
class MemoryPolicy:
    """The limits for the engine. ``tile_above`` is in pixels, None for never.

    ``plan`` is None where memory is not counted: on the CPU without a limit.
    """

    limits: StepLimits
    tile_above: int | None
    exact_rows: int = EXACT_ROWS
    plan: MemoryPlan | None = None

    @property
    def too_small(self) -> bool:
        """Return whether the largest pictures may not fit, by the plan."""
        return self.plan is not None and not self.plan.fits(LARGEST)

    def in_words(self, downscale: int) -> str:
        """The largest batches and the tiling, for the operator."""
        rows = ", ".join(
            f"{self.limits.rows_for(_key(side, downscale))} rows at {side} x {side}"
            for side in (512, MAX_SIDE)
        )
        tiles = "VAE never in tiles"
        if self.tile_above is not None:
            tiles = f"VAE in tiles above {self.tile_above / 1e6:.2f} megapixels"
        return f"{rows}; {tiles}" + (
            f"; too little for {MAX_SIDE} x {MAX_SIDE}" if self.too_small else ""
        )


def memory_policy(
    bundle: ModelBundle,
    settings: Settings,
    free: int | None = None,
    *,
    checker: SafetyModel | None = None,
) -> MemoryPolicy:
    """Plan for ``free`` bytes beside the weights, by default what the device has; ``checker`` is
    loaded too.

    Memory is unlimited on a CPU that `IMG2IMG_MEMORY_LIMIT_MIB` does not limit; steps then keep
    their usual limits.
    """
    from models.acceleration.modes import choose_acceleration
    from models.memory import MemoryPlan, measure_footprint

    asked = round(settings.vae_tile_above * 1e6) or None
    available = available_bytes(bundle, settings, checker) if free is None else free
    buckets = choose_acceleration(settings.acceleration, bundle.device).row_buckets
    if available is None:
        above = None if asked is None or asked >= LARGEST else asked
        return MemoryPolicy(StepLimits(buckets=buckets), above)

    plan = MemoryPlan(
        measure_footprint(bundle), available, settings.max_running_requests, LARGEST, asked
    )
    limits = StepLimits(plan.max_rows, plan.max_pixels, buckets)
    # Every exact step is padded to the one bucket, whatever its size.
    exact_rows = min(EXACT_ROWS, limits.rows_for(_key(MAX_SIDE, bundle.downscale)))
    return MemoryPolicy(limits, plan.tile_above, exact_rows, plan)


def available_bytes(
    bundle: ModelBundle, settings: Settings, checker: SafetyModel | None = None
) -> int | None:
    """Bytes that there are beside all weights, which are loaded; None: as many as it takes."""
    import torch

    from models.bundle import stored_bytes
    from models.memory import free_device_bytes

    limit = settings.memory_limit_mib * MIB
    if bundle.device.type == "cuda":
        free = free_device_bytes(bundle.device)
        return min(free, limit - torch.cuda.memory_allocated(bundle.device)) if limit else free
    if not limit:
        return None
    beside = [bundle.preview_vae, bundle.clip and bundle.clip.model, checker and checker.checker]
    loaded = (stored_bytes(p) for part in beside if part is not None for p in part.parameters())
    return limit - bundle.weight_bytes - sum(loaded)


def _key(side: int, downscale: int) -> GroupKey:
    return GroupKey(side // downscale, side // downscale, 77, False)
