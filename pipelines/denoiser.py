"""The tick: one U-Net forward advances many requests by one evaluation each.

    out   = unet((state[:, 0] * c_in)[rows], timestep[rows], text[rows])   # (R, 4, h, w)
    eps   = out[i0] + scale * (out[i1] - out[i0])                          # (B, 4, h, w)
    state = mix applied to (slots, eps, noise)                             # float32

Nothing here knows what a sampler is: that is in the coefficients. No dense product mixes requests,
because 0 * NaN is NaN and one bad row would poison its neighbours: rows are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import ModelBundle
from models.padding import circular_padding
from pipelines.batching import GroupKey, guidance_rows, pad_rows
from pipelines.errors import GenerationFailed
from pipelines.guidance import ClipGuide, Correction, GuidanceRun
from pipelines.samplers import SLOTS, Row

UNCOND, COND = 0, 1


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one request does in a tick: its place in the pool, its table row, its draw."""

    position: int
    row: Row
    cfg_scale: float
    slots: int
    noise: torch.Tensor | None  # (4, h, w) float32, on the CPU
    predict: bool = False  # whether the predicted latents are wanted
    guidance: GuidanceRun | None = None  # CLIP guidance, where it was asked for


@dataclass(frozen=True, eq=False)
class Tick:
    """What a tick did: the U-Net rows that ran, padding included, and predicted latents.

    ``predicted`` has the x0 of the evaluations that asked, (4, h, w) float32, by pool position.
    """

    rows: int
    predicted: dict[int, torch.Tensor]


class LatentPool:
    """The state of the running requests of one group, on the device.

    ``state`` is (capacity, 4 slots, 4, h, w) float32, ``text`` (capacity, 2, T, D) in the model's
    dtype: the unconditional text states, then the conditional ones.
    """

    def __init__(self, bundle: ModelBundle, key: GroupKey, capacity: int) -> None:
        self.key = key
        latent = (bundle.latent_channels, key.height, key.width)
        self.state = torch.zeros(capacity, SLOTS, *latent, device=bundle.device)
        self.text = torch.zeros(
            capacity,
            2,
            key.text_tokens,
            bundle.text_width,
            device=bundle.device,
            dtype=bundle.dtype,
        )
        self._free = list(range(capacity - 1, -1, -1))
        self._gathered: tuple[tuple[int, ...], torch.Tensor] | None = None

    @property
    def full(self) -> bool:
        return not self._free

    def admit(self, latents: torch.Tensor, text: torch.Tensor) -> int:
        """Take a place; the other slots are zeroed. Raises IndexError when the pool is full."""
        position = self._free.pop()
        self.state[position].zero_()
        self.state[position, 0] = latents
        self.text[position] = text
        self._gathered = None
        return position

    def release(self, position: int) -> None:
        self._free.append(position)

    def text_rows(self, places: tuple[int, ...], index: torch.Tensor) -> torch.Tensor:
        """Text states of U-Net rows, (R, T, D); ``places`` are ``index``, into (capacity * 2).

        They are kept for the next tick, which has the same rows unless a request came or left.
        """
        if self._gathered is None or self._gathered[0] != places:
            self._gathered = places, self.text.flatten(0, 1).index_select(0, index)
        return self._gathered[1]

    def latents(self, position: int) -> torch.Tensor:
        """Slot 0 of a place, (4, h, w) float32, a copy."""
        return self.state[position, 0].clone()


@dataclass(frozen=True, eq=False)
class _Batch:
    """The evaluations of a tick as arrays on the device. B requests, R rows."""

    index: torch.Tensor  # (B,) places in the pool
    c_in: torch.Tensor  # (B, 1, 1, 1)
    rows: torch.Tensor  # (R,) request of each row
    timestep: torch.Tensor  # (R,)
    text: torch.Tensor  # (R,) into the pool's text, flattened to (capacity * 2, T, D)
    text_places: tuple[int, ...]  # the same numbers, on the host
    first: torch.Tensor  # (B,) row of the unconditional output, or of the only one
    second: torch.Tensor  # (B,) row of the conditional output, or of the only one
    scale: torch.Tensor  # (B, 1, 1, 1)
    mix: torch.Tensor  # (B, S, S + 2, 1, 1, 1)
    noise: torch.Tensor | None  # (B, 4, h, w)


class Denoiser:
    """Runs ticks. ``row_buckets`` are the sizes R is padded to; empty means no padding."""

    def __init__(self, bundle: ModelBundle, row_buckets: Sequence[int] = ()) -> None:
        self._bundle = bundle
        self._row_buckets = tuple(sorted(row_buckets))
        self._guide = None if bundle.clip is None else ClipGuide(bundle, bundle.clip)

    def tick(self, pool: LatentPool, evaluations: Sequence[Evaluation]) -> Tick:
        """Advance each evaluation's request by one.

        The pool changes only when everything has gone well, so a tick that raised can be run again.
        """
        batch = self._assemble(evaluations)
        eps = self.denoise(pool, batch)
        corrections = self.guide(pool, evaluations, eps)
        for b, correction in corrections.items():
            eps[b] += correction.output
        predicted = {
            e.position: e.row.x0[0] * pool.state[e.position, 0] + e.row.x0[1] * eps[b]
            for b, e in enumerate(evaluations)
            if e.predict
        }
        self.mix(pool, batch, eps)
        for b, evaluation in enumerate(evaluations):
            if evaluation.guidance is not None:
                made = corrections.get(b)
                evaluation.guidance.commit(None if made is None else made.loss)
        return Tick(len(batch.rows), predicted)

    def _assemble(self, evaluations: Sequence[Evaluation]) -> _Batch:
        rows: list[int] = []
        text: list[int] = []
        first, second = [], []
        for b, evaluation in enumerate(evaluations):
            sides = _guidance_sides(evaluation.cfg_scale)
            first.append(len(rows))
            second.append(len(rows) + len(sides) - 1)
            rows += [b] * len(sides)
            text += [evaluation.position * 2 + side for side in sides]
        padding = pad_rows(len(rows), self._row_buckets) - len(rows)
        rows += rows[:1] * padding
        text += text[:1] * padding

        slots = max(e.slots for e in evaluations)
        count = len(evaluations)
        # (B, S, S + 2): the columns of the slots in use, eps, noise.
        mix = np.array([e.row.mix for e in evaluations])[:, :slots]
        mix = np.concatenate([mix[:, :, :slots], mix[:, :, SLOTS:]], axis=2)
        timestep = [e.row.timestep for e in evaluations]
        floats = self._upload(
            [
                [e.row.c_in for e in evaluations],
                [e.cfg_scale for e in evaluations],
                [timestep[b] for b in rows],
                mix.ravel(),
            ],
            np.float32,
        )
        integers = self._upload(
            [[e.position for e in evaluations], first, second, rows, text], np.int64
        )
        index, first_row, second_row, row_index, text_index = torch.split_with_sizes(
            integers, [count, count, count, len(rows), len(rows)]
        )
        c_in, scale, row_timestep, coefficients = torch.split_with_sizes(
            floats, [count, count, len(rows), mix.size]
        )
        return _Batch(
            index=index,
            c_in=c_in[:, None, None, None],
            rows=row_index,
            timestep=row_timestep,
            text=text_index,
            text_places=tuple(text),
            first=first_row,
            second=second_row,
            scale=scale[:, None, None, None],
            mix=coefficients.view(*mix.shape, 1, 1, 1),
            noise=self._stack_noise(evaluations),
        )

    def _upload(self, parts: Sequence[npt.ArrayLike], dtype: npt.DTypeLike) -> torch.Tensor:
        """Everything in one array, because every copy to a device costs the same small wait."""
        return torch.from_numpy(np.concatenate(parts, dtype=dtype, casting="same_kind")).to(
            self._bundle.device
        )

    def _stack_noise(self, evaluations: Sequence[Evaluation]) -> torch.Tensor | None:
        """(B, 4, h, w), zeros for the requests whose row has no draw; None when none has."""
        drawn = [e.noise for e in evaluations if e.noise is not None]
        if not drawn:
            return None
        nothing = torch.zeros_like(drawn[0])
        draws = [nothing if e.noise is None else e.noise for e in evaluations]
        return torch.stack(draws).to(self._bundle.device, non_blocking=True)

    def denoise(self, pool: LatentPool, batch: _Batch) -> torch.Tensor:
        """Gather, U-Net, guidance: the guided noise prediction, (B, 4, h, w) float32."""
        # index_select throughout: on the CPU it copies rows, where indexing looks up every element.
        latents = pool.state[:, 0].index_select(0, batch.index).mul_(batch.c_in)
        text = pool.text_rows(batch.text_places, batch.text)  # (R, T, D)
        with circular_padding(pool.key.tile, self._bundle.unet):
            out = self._bundle.unet(
                latents.index_select(0, batch.rows).to(self._bundle.dtype),
                batch.timestep,
                encoder_hidden_states=text,
                return_dict=False,
            )[0].float()  # (R, 4, h, w)
        uncond = out.index_select(0, batch.first)
        eps: torch.Tensor = out.index_select(0, batch.second)
        # uncond + scale * (cond - uncond), in place; where a request has one row, both are that
        # row and the scale does nothing.
        return eps.sub_(uncond).mul_(batch.scale).add_(uncond)

    def guide(
        self, pool: LatentPool, evaluations: Sequence[Evaluation], eps: torch.Tensor
    ) -> dict[int, Correction]:
        """CLIP guidance's corrections of ``eps`` (B, 4, h, w), by index into ``evaluations``.

        One request at a time: what a request is guided by depends on nobody else in the tick.
        """
        corrections: dict[int, Correction] = {}
        for b, evaluation in enumerate(evaluations):
            run = evaluation.guidance
            if run is None or not run.due:
                continue
            if self._guide is None:
                raise GenerationFailed("there is no CLIP model to guide with")
            place = evaluation.position
            correction = self._guide.correction(
                run, evaluation.row, pool.state[place, 0], eps[b], pool.text[place], pool.key.tile
            )
            if correction is not None:
                corrections[b] = correction
        return corrections

    def mix(self, pool: LatentPool, batch: _Batch, eps: torch.Tensor) -> None:
        """Apply the coefficients in float32, one multiply-add a column, and scatter."""
        slots = batch.mix.shape[1]
        state = pool.state[:, :slots].index_select(0, batch.index)  # (B, S, 4, h, w)
        mixed = batch.mix[:, :, slots] * eps[:, None]
        for column in range(slots):
            mixed.addcmul_(batch.mix[:, :, column], state[:, column : column + 1])
        if batch.noise is not None:
            mixed.addcmul_(batch.mix[:, :, slots + 1], batch.noise[:, None])
        pool.state[batch.index, :slots] = mixed


def _guidance_sides(cfg_scale: float) -> tuple[int, ...]:
    """Which text states a request's rows read: at 0 the unconditional, at 1 the conditional."""
    if guidance_rows(cfg_scale) == 1:
        return (UNCOND,) if cfg_scale == 0.0 else (COND,)
    return (UNCOND, COND)
