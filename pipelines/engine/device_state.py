"""A request on the device: its tensors, and what its next units of work need of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipelines.denoise.batch import Evaluation
from pipelines.denoise.clip_guidance import GuidanceRun
from pipelines.engine.preparer import Prepared
from pipelines.request import GenerationRequest
from pipelines.scheduler.request_state import RequestState
from pipelines.vae.decode import Decoded, Decoding
from pipelines.vae.encode import Encoding, Moments


@dataclass(eq=False)
class DeviceState:
    """The tensors of a request, and what its next units need of it."""

    state: RequestState
    prepared: Prepared
    guidance: GuidanceRun | None
    text: torch.Tensor | None = None  # (2, T, D)
    encoding: Encoding | None = None
    moments: Moments | None = None  # until it is known whether they are finite
    decoding: Decoding | None = None
    position: int | None = None
    previewed: float = -math.inf
    decoded: Decoded | None = None

    @property
    def request(self) -> GenerationRequest:
        return self.state.request

    @property
    def place(self) -> int:
        assert self.position is not None
        return self.position

    def evaluation(self) -> Evaluation:
        """Return the request's part in the next step."""
        program, request = self.prepared.program, self.request
        row = program.steps[self.state.done]
        draw = None if row.noise is None else self.prepared.noise.steps[row.noise]
        return Evaluation(
            self.place,
            row,
            request.cfg_scale,
            program.slots,
            draw,
            request.previews,
            self.guidance,
            self.prepared.mask is not None,
        )
