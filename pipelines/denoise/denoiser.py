"""The step: one U-Net forward advances many requests by one evaluation each.

    out   = unet((state[:, 0] * c_in)[rows], timestep[rows], text[rows])   # (R, 4, h, w)
    eps   = out[i0] + scale * (out[i1] - out[i0])                          # (B, 4, h, w)
    eps   = what CLIP guidance and masks make of it, of requests that have them
    state = mix applied to (slots, eps, noise)                             # float32

Nothing here knows what a sampler is: that is in the coefficients. No dense product mixes requests,
because 0 * NaN is NaN and one bad row would poison its neighbours: rows are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from models.acceleration.cuda_graphs import Capturer
from models.bundle import ModelBundle
from pipelines.counts import GraphCounts
from pipelines.denoise.batch import (
    Batch,
    Evaluation,
    StaticBatch,
    assemble,
    row_count,
    stack_noise,
)
from pipelines.denoise.captured_step import CapturedStep
from pipelines.denoise.clip_guidance import ClipGuide, Correction
from pipelines.denoise.latent_pool import LatentPool
from pipelines.denoise.mask import keep_outside
from pipelines.errors import GenerationFailed


@dataclass(frozen=True, eq=False)
class Step:
    """The outcome of a step: the U-Net rows that ran, padding included, and predicted latents.

    ``predicted`` has the x0 of the evaluations that asked, (4, h, w) float32, by pool position.
    """

    rows: int
    predicted: dict[int, torch.Tensor]


class Denoiser:
    """Runs steps. With a ``capturer`` a pool that allows it has those captured that have as many
    rows as one of ``row_buckets``, one pair of graphs a bucket.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        row_buckets: Sequence[int] = (),
        capturer: Capturer | None = None,
    ) -> None:
        self._bundle = bundle
        self._row_buckets = frozenset(row_buckets)
        self._capturer = capturer
        self.graphs = GraphCounts()
        self._guide = None if bundle.clip is None else ClipGuide(bundle, bundle.clip)

    @property
    def captures(self) -> bool:
        """Return whether steps are captured."""
        return self._capturer is not None

    def step(
        self, pool: LatentPool, evaluations: Sequence[Evaluation], rows: int | None = None
    ) -> Step:
        """Advance each evaluation's request by one, in ``rows`` U-Net rows, padding included.

        Left out, there is no padding. The pool changes only when everything has gone well, so a
        step that raised can be run again.
        """
        rows = rows or row_count(evaluations)
        captured = self._captured(pool, rows)
        self.graphs.count_run(captured is not None)
        mix: Callable[[], object]
        if captured is None:
            noise = stack_noise(evaluations, self._bundle.device)
            batch = assemble(evaluations, rows).upload(self._bundle.device, noise)
            eps = self.denoise(pool, batch)

            def mix() -> None:
                self.mix(pool, batch, eps)
        else:
            eps = captured.denoise(evaluations)
            mix = captured.mix
        corrections = self.guide(pool, evaluations, eps)
        for b, correction in corrections.items():
            eps[b] += correction.output
        keep_outside(pool.kept, pool.state, evaluations, eps)
        predicted = {
            e.position: e.coefficients.x0[0] * pool.state[e.position, 0]
            + e.coefficients.x0[1] * eps[b]
            for b, e in enumerate(evaluations)
            if e.predict
        }
        mix()
        for b, evaluation in enumerate(evaluations):
            if evaluation.guidance is not None:
                evaluation.guidance.commit(corrections.get(b))
        return Step(rows, predicted)

    def _captured(self, pool: LatentPool, rows: int) -> CapturedStep | None:
        """The graphs of this pool and bucket, captured now if it is time; None to do without."""
        capturer = self._capturer
        if capturer is None or rows not in self._row_buckets:
            return None

        def capture() -> CapturedStep:
            latent, device = pool.state.shape[2:], pool.state.device
            static = StaticBatch(rows, latent, pool.scratch, device)
            # Outside the graphs' memory, so that a later replay of another graph cannot touch it.
            eps = torch.zeros(rows, *latent, device=device)
            denoise, mix = partial(self.denoise, pool), partial(self.mix, pool)
            return CapturedStep(static, eps, denoise, mix, capturer)

        return pool.captured.get_or_capture(rows, capture, self.graphs)

    def denoise(self, pool: LatentPool, batch: Batch) -> torch.Tensor:
        """Gather, U-Net, guidance: the guided noise prediction, (B, 4, h, w) float32."""
        # index_select throughout: on the CPU it copies rows, where indexing looks up every element.
        latents = pool.state[:, 0].index_select(0, batch.index).mul_(batch.c_in)
        text = pool.text_rows(batch.text_places, batch.text)  # (R, T, D)
        noisy = latents.index_select(0, batch.rows).to(self._bundle.dtype)
        out = self._bundle.predict(noisy, batch.timestep, text, pool.key.tile)
        out = out.float()  # (R, 4, h, w)
        uncond = out.index_select(0, batch.first)
        eps: torch.Tensor = out.index_select(0, batch.second)
        # uncond + scale * (cond - uncond), in place; where a request has one row, both are that
        # row and the scale does nothing.
        return eps.sub_(uncond).mul_(batch.scale).add_(uncond)

    def guide(
        self, pool: LatentPool, evaluations: Sequence[Evaluation], eps: torch.Tensor
    ) -> dict[int, Correction]:
        """CLIP guidance's corrections of ``eps`` (B, 4, h, w), by index into ``evaluations``.

        One request at a time: what a request is guided by depends on nobody else in the step.
        """
        corrections: dict[int, Correction] = {}
        for b, evaluation in enumerate(evaluations):
            run = evaluation.guidance
            if run is None:
                continue
            if self._guide is None:
                raise GenerationFailed("there is no CLIP model to guide with")
            place, row, tile = evaluation.position, evaluation.coefficients, pool.key.tile
            correction = (
                self._guide.correction(
                    run, row, pool.state[place, 0], eps[b], pool.text(place), tile
                )
                if run.due
                else run.repeated(row)
            )
            if correction is not None:
                corrections[b] = correction
        return corrections

    def mix(self, pool: LatentPool, batch: Batch, eps: torch.Tensor) -> None:
        """Apply the coefficients in float32, one multiply-add a column, and scatter."""
        slots = batch.mix.shape[1]
        state = pool.state[:, :slots].index_select(0, batch.index)  # (B, S, 4, h, w)
        mixed = batch.mix[:, :, slots] * eps[:, None]
        for column in range(slots):
            mixed.addcmul_(batch.mix[:, :, column], state[:, column : column + 1])
        if batch.noise is not None:
            mixed.addcmul_(batch.mix[:, :, slots + 1], batch.noise[:, None])
        pool.state[batch.index, :slots] = mixed
