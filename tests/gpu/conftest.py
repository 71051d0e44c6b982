"""A rig for each test: the card where there is one, the CPU where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from models.acceleration import modes as acceleration
from models.acceleration.cuda_graphs import Capturer, EagerCapturer
from models.acceleration.fast_forwards import make_forwards
from models.acceleration.modes import Acceleration
from models.acceleration.torch_kernels import TorchKernels
from pipelines.engine import warmup as fast_path
from tests.gpu.rig import Rig

HAS_CARD = torch.cuda.is_available()


def eager_capturer(chosen: Acceleration, device: torch.device) -> Capturer | None:
    """As `make_capturer`, for a CPU."""
    return EagerCapturer() if chosen.graphs else None


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            "card",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_CARD, reason="needs CUDA")],
        ),
        pytest.param(
            "cpu",
            marks=[
                pytest.mark.slow("checkpoints"),
                pytest.mark.skipif(HAS_CARD, reason="shown by the card"),
            ],
        ),
    ],
)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The device that a test runs on, and its model."""
    if request.param == "card":
        yield Rig(torch.device("cuda"), narrow=False)
        torch.cuda.empty_cache()
        return
    with pytest.MonkeyPatch.context() as patches:
        in_torch = partial(make_forwards, make_kernels=lambda _: TorchKernels())
        patches.setattr(acceleration, "make_forwards", in_torch)
        patches.setattr(fast_path, "make_capturer", eager_capturer)
        yield Rig(torch.device("cpu"), narrow=True)
