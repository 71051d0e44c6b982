"""The evaluations of one step as arrays: made on the host, then put on the device.

Made for a step as it comes (`upload`), or written into tensors that stay where they are
(`StaticBatch`), which a captured graph needs: there the number of requests is padded to the number
of U-Net rows as well, and what is padded points at the pool's scratch place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.device import host_tensor, upload
from pipelines.denoise.clip_guidance import GuidanceRun
from pipelines.samplers.programs import SLOTS, StepCoefficients
from pipelines.scheduler.batching import guidance_rows

UNCOND, COND = 0, 1


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One request's part in a step: its place in the pool, its coefficients, its draw."""

    position: int
    coefficients: StepCoefficients
    cfg_scale: float
    slots: int
    noise: torch.Tensor | None  # (4, h, w) float32, on the CPU
    predict: bool = False  # whether the predicted latents are wanted
    guidance: GuidanceRun | None = None  # CLIP guidance, where it was asked for
    masked: bool = False  # whether the pool holds what it keeps


@dataclass(frozen=True, eq=False)
class Batch:
    """The evaluations of a step as arrays on the device. B requests, R rows, S slots."""

    index: torch.Tensor  # (B,) places in the pool
    c_in: torch.Tensor  # (B, 1, 1, 1)
    rows: torch.Tensor  # (R,) request of each row
    timestep: torch.Tensor  # (R,)
    text: torch.Tensor  # (R,) into the pool's text, flattened to (places * 2, T, D)
    text_places: tuple[int, ...] | None  # the same numbers on the host; None where they change
    first: torch.Tensor  # (B,) row of the unconditional output, or of the only one
    second: torch.Tensor  # (B,) row of the conditional output, or of the only one
    scale: torch.Tensor  # (B, 1, 1, 1)
    mix: torch.Tensor  # (B, S, S + 2, 1, 1, 1)
    noise: torch.Tensor | None  # (B, 4, h, w)


@dataclass(frozen=True, eq=False)
class HostBatch:
    """The same on the host: every integer in one array, every float in another.

    In one array each, because every copy to a device costs the same small wait.
    """

    requests: int
    rows: int
    slots: int
    integers: npt.NDArray[np.int64]
    floats: npt.NDArray[np.float32]
    text_places: tuple[int, ...]

    def upload(self, device: torch.device, noise: torch.Tensor | None) -> Batch:
        """On ``device``; ``noise`` is (B, 4, h, w) float32 there, or None."""
        integers, floats = upload(self.integers, device), upload(self.floats, device)
        return _views(
            integers, floats, self.requests, self.rows, self.slots, self.text_places, noise
        )


def row_count(evaluations: Sequence[Evaluation]) -> int:
    """Return the U-Net rows of a step without padding."""
    return sum(guidance_rows(e.cfg_scale) for e in evaluations)


def assemble(
    evaluations: Sequence[Evaluation],
    rows: int,
    *,
    slots: int | None = None,
    pad_to: int = 0,
    scratch: int = 0,
) -> HostBatch:
    """The arrays of a step of ``rows`` U-Net rows, of which padding repeats the first.

    ``slots`` are those that are mixed; left out, as many as these samplers use. Fewer than
    ``pad_to`` requests are filled up with some that read row 0 and write the place ``scratch``.
    """
    request_of: list[int] = []
    text: list[int] = []
    first, second = [], []
    for b, evaluation in enumerate(evaluations):
        sides = _guidance_sides(evaluation.cfg_scale)
        first.append(len(request_of))
        second.append(len(request_of) + len(sides) - 1)
        request_of += [b] * len(sides)
        text += [evaluation.position * 2 + side for side in sides]
    padding = rows - len(request_of)
    request_of += request_of[:1] * padding
    text += text[:1] * padding
    timestep = [e.coefficients.timestep for e in evaluations]

    slots = slots or max(e.slots for e in evaluations)
    requests = max(pad_to, len(evaluations))
    spare = requests - len(evaluations)
    # (B, S, S + 2): the columns of the slots in use, eps, noise.
    mix = np.zeros((requests, slots, slots + 2))
    for b, evaluation in enumerate(evaluations):
        mix[b, :, :slots] = evaluation.coefficients.mix[:slots, :slots]
        mix[b, :, slots:] = evaluation.coefficients.mix[:slots, SLOTS:]
    integers = [
        [e.position for e in evaluations] + [scratch] * spare,
        first + [0] * spare,
        second + [0] * spare,
        request_of,
        text,
    ]
    floats: list[npt.ArrayLike] = [
        [e.coefficients.c_in for e in evaluations] + [0.0] * spare,
        [e.cfg_scale for e in evaluations] + [0.0] * spare,
        [timestep[b] for b in request_of],
        mix.ravel(),
    ]
    return HostBatch(
        requests,
        rows,
        slots,
        np.concatenate(integers, dtype=np.int64, casting="same_kind"),
        np.concatenate([np.asarray(part, np.float32) for part in floats]),
        tuple(text),
    )


def _guidance_sides(cfg_scale: float) -> tuple[int, ...]:
    """Return the text states that a request's rows read: at 0 the unconditional, at 1 the
    conditional."""
    if guidance_rows(cfg_scale) == 1:
        return (UNCOND,) if cfg_scale == 0.0 else (COND,)
    return (UNCOND, COND)


def _views(
    integers: torch.Tensor,
    floats: torch.Tensor,
    requests: int,
    rows: int,
    slots: int,
    text_places: tuple[int, ...] | None,
    noise: torch.Tensor | None,
) -> Batch:
    index, first, second, request_of, text = torch.split_with_sizes(
        integers, [requests, requests, requests, rows, rows]
    )
    c_in, scale, timestep, mix = torch.split_with_sizes(
        floats, [requests, requests, rows, requests * slots * (slots + 2)]
    )
    return Batch(
        index=index,
        c_in=c_in[:, None, None, None],
        rows=request_of,
        timestep=timestep,
        text=text,
        text_places=text_places,
        first=first,
        second=second,
        scale=scale[:, None, None, None],
        mix=mix.view(requests, slots, slots + 2, 1, 1, 1),
        noise=noise,
    )


def stack_noise(evaluations: Sequence[Evaluation], device: torch.device) -> torch.Tensor | None:
    """(B, 4, h, w), zeros for the requests whose row has no draw; None when none has."""
    drawn = [e.noise for e in evaluations if e.noise is not None]
    if not drawn:
        return None
    nothing = torch.zeros_like(drawn[0])
    draws = [nothing if e.noise is None else e.noise for e in evaluations]
    return upload(torch.stack(draws).numpy(), device)  # a stack of pinned draws is not pinned


class StaticBatch:
    """A batch of ``rows`` rows and as many requests in tensors that never move.

    A graph that was captured over ``batch`` does what was last written into it.
    """

    def __init__(self, rows: int, latent: Sequence[int], scratch: int, device: torch.device):
        self._rows, self._scratch = rows, scratch
        self._integers = torch.zeros(5 * rows, dtype=torch.int64, device=device)
        self._floats = torch.zeros(3 * rows + rows * SLOTS * (SLOTS + 2), device=device)
        noise = torch.zeros(rows, *latent, device=device)
        self.batch = _views(self._integers, self._floats, rows, rows, SLOTS, None, noise)
        # Until something is written, every request is padding: a capture may run the step.
        self.batch.index.fill_(scratch)

    def write(self, evaluations: Sequence[Evaluation]) -> None:
        """Queue the copies of a step's arrays; the host waits for none of them on CUDA."""
        host = assemble(
            evaluations, self._rows, slots=SLOTS, pad_to=self._rows, scratch=self._scratch
        )
        device = self._integers.device
        self._integers.copy_(host_tensor(host.integers, device), non_blocking=True)
        self._floats.copy_(host_tensor(host.floats, device), non_blocking=True)
        assert self.batch.noise is not None
        for b, evaluation in enumerate(evaluations):
            # Where there is no draw its coefficient is zero, and what was there is finite.
            if evaluation.noise is not None:
                self.batch.noise[b].copy_(evaluation.noise, non_blocking=True)
