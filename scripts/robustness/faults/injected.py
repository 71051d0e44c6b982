"""What goes wrong inside a server when a file says so; put into it by the nursery, no product code.

The file's path is in the environment as FAULTS_FILE. It says `thread` (the engine's thread dies),
`memory` (one forward in three finds no memory), `nan` (the latents of requests with POISONED as
their cfg_scale become NaN), or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from models.bundle import ModelBundle
from pipelines.denoise.batch import Evaluation
from pipelines.denoise.denoiser import Denoiser
from pipelines.denoise.latent_pool import LatentPool
from pipelines.engine.engine import Engine

FILE_VARIABLE = "FAULTS_FILE"
POISONED = 6.5


def patch() -> None:
    """Put the faults into the classes of this process."""
    orders = Path(os.environ[FILE_VARIABLE])
    receive, predict, step = Engine._receive, ModelBundle.predict, Denoiser.step
    forwards = count()

    def faulty_receive(engine: Engine, block: bool) -> None:
        if orders.read_text() == "thread":
            raise RuntimeError("injected into the engine's thread")
        receive(engine, block)

    def faulty_predict(bundle: ModelBundle, *arguments: Any, **options: Any) -> Any:
        if orders.read_text() == "memory" and next(forwards) % 3 == 0:
            raise torch.OutOfMemoryError("injected: no memory")
        return predict(bundle, *arguments, **options)

    def faulty_step(
        denoiser: Denoiser, pool: LatentPool, evaluations: Sequence[Evaluation], *more: Any
    ) -> Any:
        if orders.read_text() == "nan":
            for one in evaluations:
                if one.cfg_scale == POISONED:
                    pool.state[one.position] = float("nan")
        return step(denoiser, pool, evaluations, *more)

    for owner, faulty in (
        (Engine, {"_receive": faulty_receive}),
        (ModelBundle, {"predict": faulty_predict}),
        (Denoiser, {"step": faulty_step}),
    ):
        for name, function in faulty.items():
            setattr(owner, name, function)
