"""Does the units of work that the policy names, on the device. The engine's thread owns it.

Knows tensors and no clock, no queue and no deadline: those are the engine's and the scheduler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.acceleration.cuda_graphs import Capturer
from models.bundle import ModelBundle
from pipelines.cache import CacheCounts
from pipelines.denoise.denoiser import Denoiser
from pipelines.denoise.latent_pool import LatentPool, LatentPools
from pipelines.engine.job import Job, StepCounts, evaluation_of, program_of
from pipelines.prompt.encoder import PromptEncoder
from pipelines.request import Pixels
from pipelines.scheduler.batching import GroupKey
from pipelines.vae.decode import Decoding, decode_together
from pipelines.vae.encode import ImageEncoder, start_latents
from pipelines.vae.graphs import VaeGraphs
from pipelines.vae.preview import LatentToRgb


@dataclass(frozen=True)
class UnitDone:
    """Facts of the last unit of work: is its time what such units take, text apart.

    One that failed, or whose picture was cached, is not ``ordinary``. ``text_chunks`` were
    encoded in it.
    """

    ordinary: bool = False
    text_chunks: int = 0


@dataclass(eq=False)
class ModelRunner:
    """Encodes, steps and decodes jobs of one model; at most ``capacity`` a pool at a time.

    With a ``capturer`` steps are captured: of the ``hot`` keys at their first, see `LatentPools`;
    so are whole passes of the VAE, see `VaeGraphs`.
    """

    bundle: ModelBundle
    row_buckets: Sequence[int]
    capacity: int
    capturer: Capturer | None = None
    hot: Sequence[GroupKey] = ()

    def __post_init__(self) -> None:
        self.prompts = PromptEncoder(self.bundle)
        self.denoiser = Denoiser(self.bundle, self.row_buckets, self.capturer)
        self.steps = StepCounts()
        self.done = UnitDone()
        self.vae_graphs: VaeGraphs | None = None
        if self.capturer is not None:
            sizes = {(key.height, key.width) for key in self.hot}
            self.vae_graphs = VaeGraphs(self.capturer, sizes)
        self.pictures = ImageEncoder(self.bundle, graphs=self.vae_graphs)
        self._latent_to_rgb: LatentToRgb | None = None
        self.pools = LatentPools(self._make_pool, captures=self.capturer is not None, hot=self.hot)
        self._members: set[Job] = set()

    @property
    def cache_counts(self) -> dict[str, CacheCounts]:
        """Hits and misses of each cache."""
        return {"prompts": self.prompts.counts, "pictures": self.pictures.counts}

    def _make_pool(self, key: GroupKey, patience: int | None) -> LatentPool:
        return LatentPool(self.bundle, key, self.capacity, patience)

    def encode(self, job: Job, parts: int) -> bool:
        """The next of ``parts`` parts; True once the job has its place in a pool."""
        self.done = UnitDone()
        request, encoded = job.request, 0
        if job.encoding is None:
            before = self.prompts.counts.misses
            job.text = self.prompts.encode(job.texts)
            encoded = self.prompts.counts.misses - before
            job.encoding = self.pictures.begin(request.image, request.tile, parts, job.digest)
        cached = job.encoding.cached
        moments = job.encoding.advance()
        self.done = UnitDone(not cached, encoded)
        if moments is None:
            return False
        assert job.noise is not None
        assert job.text is not None
        latents = start_latents(
            moments, job.noise, program_of(job), request.image_strength, self.bundle.scaling_factor
        )
        pool = self.pools.enter(job.key)
        try:
            job.position = pool.admit(latents, job.text)
        except Exception:
            self.pools.leave(job.key)
            raise
        self._members.add(job)
        job.encoding = job.text = None
        return True

    def step(self, members: Sequence[Job]) -> None:
        """One evaluation of each of ``members``, who are of one key. Nothing changes if it fails.

        Raises whatever torch does; after an out-of-memory error its memory is free again.
        """
        self.done = UnitDone()
        pool = self.pools[members[0].key]
        try:
            step = self.denoiser.step(pool, [evaluation_of(job) for job in members])
        except torch.OutOfMemoryError as error:
            # The frames of the traceback hold the tensors of the forward that failed.
            error = error.with_traceback(None)
            if self.bundle.device.type == "cuda":
                torch.cuda.empty_cache()
            raise error from None
        self.steps.count(step.rows, len(members))
        fitted = self._latent_to_rgb
        for job in members:
            job.done += 1
            job.preview = self._preview(step.predicted.get(job.position))
        self.done = UnitDone(ordinary=self._latent_to_rgb is fitted)

    def decode(self, jobs: Sequence[Job], parts: int) -> bool:
        """The next of ``parts`` parts; True once the pictures are on their way.

        Several jobs, of one key and in one part, share a pass where passes are captured.
        """
        self.done = UnitDone()
        if len(jobs) > 1 and self.vae_graphs is not None:
            latents = [self._latents(job) for job in jobs]
            made = decode_together(self.bundle, latents, self.vae_graphs)
            for job, decoded in zip(jobs, made, strict=True):
                job.decoded = decoded
            self.done = UnitDone(ordinary=True)
            return True
        for job in jobs:
            if job.decoding is None:
                tile = job.request.tile
                job.decoding = Decoding(
                    self.bundle, self._latents(job), tile, parts, self.vae_graphs
                )
            job.decoded = job.decoding.launch()
        self.done = UnitDone(ordinary=True)
        return all(job.decoded is not None for job in jobs)

    def _latents(self, job: Job) -> torch.Tensor:
        return self.pools[job.key].latents(job.position)

    def release(self, job: Job) -> None:
        """Give a job's place free, if it has one."""
        job.encoding = job.decoding = job.decoded = job.text = None
        if job in self._members:
            self._members.remove(job)
            self.pools[job.key].release(job.position)
            self.pools.leave(job.key)

    def _preview(self, predicted: torch.Tensor | None) -> Pixels | None:
        if predicted is None:
            return None
        if self._latent_to_rgb is None:
            self._latent_to_rgb = LatentToRgb.fit(self.bundle)
        return self._latent_to_rgb.picture(predicted)
