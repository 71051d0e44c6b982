"""The configuration of an engine: plain fields, which `policy.py` and `warmup.py` read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.acceleration.modes import UNACCELERATED, Acceleration


@dataclass(frozen=True)
class EngineConfig:
    """The limits of an engine, and what makes it fast.

    ``max_queue`` requests wait or run at most; ``max_running_requests`` run at a time. A step has
    at most ``max_rows`` U-Net rows and ``max_pixels`` latent pixels over all rows.
    ``row_buckets`` are the numbers of U-Net rows that a step is padded to; empty means those that
    the acceleration needs. ``exact`` runs every step in one fixed bucket of ``exact_rows``, on
    CUDA one request a step, so that a picture's bytes do not depend on the crowd.

    ``capture_sizes`` are the (width, height) of pictures, in pixels, that are fast from the first
    request on; compiled code is kept in ``compile_folder``, if any. Work is taken to hang after
    ``hang_seconds`` and to be lost after ``lost_seconds``, see `pipelines.engine.watch.Patience`.
    """

    max_queue: int = 64
    max_running_requests: int = 16
    max_rows: int = 16
    max_pixels: int = 16 * 64 * 64
    row_buckets: Sequence[int] = ()
    exact: bool = False
    exact_rows: int = 8
    warm_up: bool = True
    acceleration: Acceleration = UNACCELERATED
    capture_sizes: Sequence[tuple[int, int]] = ()
    compile_folder: Path | None = None
    hang_seconds: float = 10.0
    lost_seconds: float = 300.0
