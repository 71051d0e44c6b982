"""Whether pictures are diffusers', in float32: in half precision pictures of a random model prove
nothing (diffusers differs from itself by 10 dB), there one forward is compared (`forwards`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipelines.request import Pixels
from scripts.benchmarks.gpu.engine import running_engine
from scripts.benchmarks.gpu.ledger import Ledger
from scripts.benchmarks.gpu.model import RandomModel, make_pipeline, run_pipeline
from scripts.benchmarks.gpu.plan import Scale, checked_requests

LEAST_PSNR = 60.0
"""dB of two 8-bit pictures; those of two seeds are below 20."""

MOST_ERROR = 2e-3
"""Of one forward in half precision against float32."""


def psnr(one: Pixels, other: Pixels) -> float:
    """Return the PSNR of two 8-bit pictures in dB; 99 where they are equal."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return 99.0 if error == 0 else min(99.0, 10 * math.log10(255**2 / error))


def measure_correctness(model: RandomModel, scale: Scale, ledger: Ledger) -> None:
    """Compare with diffusers' pictures: modes off and graphs, alone and in a crowd.

    In float32 that is float32: cuDNN's convolutions round to 10 bits unless they are told not to.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        _measure(model, scale, ledger)


def _measure(model: RandomModel, scale: Scale, ledger: Ledger) -> None:
    requests = checked_requests(scale)
    bundle = model.bundle(torch.float32)
    pipeline = make_pipeline(bundle)
    references = [run_pipeline(pipeline, request) for request in requests]
    for mode in ("off", "graphs"):
        if not ledger.fits(8.0):
            return
        # The same modules: a mode that changes them comes after those that read them.
        with running_engine(bundle, mode, scale) as (engine, _):
            alone = [engine.submit(requests[0]).wait(600).image]
            handles = [engine.submit(request) for request in requests]
            crowd = [handle.wait(600).image for handle in handles]
        for name, pictures in (("alone", alone), ("in a crowd", crowd)):
            ledger.put(compare(pictures, references), "correctness", f"{mode}, {name}")


def compare(pictures: Sequence[Pixels], references: Sequence[Pixels]) -> dict[str, Any]:
    """Return the worst PSNR, and the best one of a picture with another's reference."""
    near = [psnr(mine, reference) for mine, reference in zip(pictures, references, strict=False)]
    far = [psnr(mine, references[(i + 1) % len(references)]) for i, mine in enumerate(pictures)]
    good = min(near) >= LEAST_PSNR and min(near) >= max(far) + 6
    return {"psnr": min(near), "another": max(far), "good": good}
