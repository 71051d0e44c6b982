"""Does the units of work that the policy names, on the device. The engine's thread owns it.

Knows tensors and no clock, no queue and no deadline: those are the engine's and the scheduler's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from models.acceleration.cuda_graphs import Capturer
from models.bundle import ModelBundle
from pipelines.cache import CacheCounts
from pipelines.counts import GraphCounts
from pipelines.denoise.clip_guidance import GuidanceRun
from pipelines.denoise.denoiser import Denoiser
from pipelines.denoise.latent_pool import LatentPool, LatentPools
from pipelines.engine.device_state import DeviceState
from pipelines.engine.preparer import Prepared
from pipelines.errors import GenerationError, as_failure
from pipelines.prompt.encoder import PromptEncoder
from pipelines.request import Pixels
from pipelines.scheduler.batching import GroupKey, pad_rows
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.work import Encode, Step, Work
from pipelines.vae.decode import Decoding, decode_together
from pipelines.vae.encode import Encoding, ImageEncoder, Moments
from pipelines.vae.graphs import VaeGraphs
from pipelines.vae.preview import Drawing, Previews
from pipelines.vae.start import start_latents

logger = logging.getLogger(__name__)


@dataclass
class StepCounts:
    """Totals over the steps so far: how many, their U-Net rows, requests they advanced."""

    steps: int = 0
    rows: int = 0
    evaluations: int = 0

    def count(self, rows: int, evaluations: int) -> None:
        self.steps += 1
        self.rows += rows
        self.evaluations += evaluations


@dataclass
class Launched:
    """The outcome of a launched unit, which may still run on the device.

    Its time is that of such units, text apart, if it is ``ordinary``: one that failed, whose
    picture was cached, or that was captured is not, nor a step that awaits its capture or, where
    others are captured, has too long a text for it. ``text_chunks`` were encoded in it. ``last``
    says that no further part of the encode or decode is needed. ``failures`` and the ``previews``
    that a step began are by request. ``out_of_memory`` says that requests did not go together for
    want of memory; ``row_cap`` is the most rows that its key's steps may have then, if that was
    for their rows.
    """

    ordinary: bool = True
    last: bool = False
    text_chunks: int = 0
    failures: dict[int, GenerationError] = field(default_factory=dict)
    previews: dict[int, Callable[[], Pixels | None]] = field(default_factory=dict)
    out_of_memory: bool = False
    row_cap: int | None = None


@dataclass(eq=False)
class ModelRunner:
    """Encodes, steps and decodes requests of one model; at most ``capacity`` a pool at a time.

    A step runs the rows that its work says; ``row_buckets`` are those that it is padded to.
    With a ``capturer`` steps are captured: of the ``hot`` keys at their first, see `LatentPools`;
    so are whole passes of the VAE, see `VaeGraphs`, and of the text encoder.
    """

    bundle: ModelBundle
    row_buckets: Sequence[int]
    capacity: int
    capturer: Capturer | None = None
    hot: Sequence[GroupKey] = ()

    def __post_init__(self) -> None:
        self.prompts = PromptEncoder(self.bundle, capturer=self.capturer)
        self.denoiser = Denoiser(self.bundle, self.row_buckets, self.capturer)
        self.steps = StepCounts()
        self.vae_graphs: VaeGraphs | None = None
        if self.capturer is not None:
            sizes = {(key.height, key.width) for key in self.hot}
            self.vae_graphs = VaeGraphs(self.capturer, sizes)
        self.pictures = ImageEncoder(self.bundle, graphs=self.vae_graphs)
        self._previews = Previews(self.bundle)
        self.pools = LatentPools(self._make_pool, captures=self.capturer is not None, hot=self.hot)
        self._requests: dict[int, DeviceState] = {}

    @property
    def cache_counts(self) -> dict[str, CacheCounts]:
        """Hits and misses of each cache."""
        return {"prompts": self.prompts.counts, "pictures": self.pictures.counts}

    @property
    def graph_counts(self) -> dict[str, GraphCounts]:
        """Captures, replays and runs without, by what the graphs are of; none without graphs."""
        if self.vae_graphs is None:
            return {}
        return {
            "text": self.prompts.graphs,
            "step": self.denoiser.graphs,
            **self.vae_graphs.counts,
        }

    def _make_pool(self, key: GroupKey, patience: int | None) -> LatentPool:
        return LatentPool(self.bundle, key, self.capacity, patience)

    # Requests

    def add(self, state: RequestState, prepared: Prepared) -> None:
        """Take a request in: units of work may name it from now on."""
        guidance = GuidanceRun.of(state.request)
        self._requests[state.ident] = DeviceState(state, prepared, guidance)

    def release(self, ident: int) -> None:
        """Forget a request and give its place free, if it is here."""
        member = self._requests.pop(ident, None)
        if member is not None:
            self._leave_pool(member)

    def picture(self, ident: int) -> Pixels:
        """Return a decoded request's picture, (H, W, 3), as soon as it is on the host.

        Raises FloatingPointError if it cannot be finite.
        """
        member = self._requests[ident]
        assert member.decoded is not None
        return member.decoded.wait()

    def check_encoded(self, ident: int) -> bool:
        """Return whether a request goes on as it was encoded; call it once that has ended.

        If not, its picture overflowed half precision. It has been encoded in float32 now, and is as
        before its first step. Raises FloatingPointError if it cannot be finite.
        """
        member = self._requests[ident]
        moments, member.moments = member.moments, None
        if moments is None or moments.finite or member.position is None:
            return True
        request = member.request
        moments = self.pictures.again(request.image, request.tile, member.prepared.digest)
        self._leave_pool(member)
        member.guidance = GuidanceRun.of(request)
        member.text = self.prompts.encode(member.prepared.texts)
        self._enter_pool(member, moments)
        return False

    def _leave_pool(self, member: DeviceState) -> None:
        if member.position is not None:
            self.pools[member.state.key].release(member.position)
            self.pools.leave(member.state.key)
            member.position = None

    # Units of work

    def launch(self, work: Work) -> Launched:
        """Start a unit of work. Never raises for a request's sake: `Launched.failures` says it.

        A step or a shared decode that fails is run again in smaller units, down to the one request
        that makes it fail.
        """
        launched = Launched()
        members = [self._requests[ident] for ident in work.idents]
        if isinstance(work, Step):
            self._step(members, work.padded, launched)
        elif isinstance(work, Encode):
            self._encode(members[0], work, launched)
        else:
            self._decode(members, work.parts, launched)
        if launched.last and not isinstance(work, Step) and work.part + 1 < work.parts:
            launched.ordinary = False
        return launched

    def _fail(self, member: DeviceState, error: Exception, what: str, launched: Launched) -> None:
        """Note that ``member`` has failed; call it where the error is handled, for the log."""
        self._leave_pool(member)
        # Released only when the next unit has been launched, which would do without their memory.
        member.encoding = member.decoding = member.text = None
        logger.exception("request %s %s", member.request.request_id, what)
        launched.failures[member.state.ident] = as_failure(error)
        launched.ordinary = False

    def _encode(self, member: DeviceState, work: Encode, launched: Launched) -> None:
        """Run the next part of an encode; the last one takes a place in a pool."""
        tried = self._captures_tried("text", "encode")
        try:
            if member.text is None:
                before = self.prompts.counts.misses
                member.text = self.prompts.encode(member.prepared.texts)
                launched.text_chunks = self.prompts.counts.misses - before
            moments = None
            if member.request.from_noise:
                launched.ordinary = False
            else:
                member.encoding = member.encoding or self._begin(member, work.parts)
                launched.ordinary = member.encoding.ordinary
                moments = member.encoding.advance()
            if self._captures_tried("text", "encode") > tried:
                launched.ordinary = False
            if moments is not None or member.request.from_noise:
                self._enter_pool(member, moments)
                launched.last = True
        except Exception as error:
            self._fail(member, error, "could not be encoded", launched)

    def _begin(self, member: DeviceState, parts: int) -> Encoding:
        request = member.request
        return self.pictures.begin(request.image, request.tile, parts, member.prepared.digest)

    def _enter_pool(self, member: DeviceState, moments: Moments | None) -> None:
        """Take a place in a pool. ``moments`` are the picture's, None from noise."""
        assert member.text is not None
        bundle, prepared = self.bundle, member.prepared
        sigma, noise, mask, picture = prepared.program.steps[0].sigma, prepared.noise, None, None
        if moments is not None:
            picture = moments.sample(noise.posterior, bundle.scaling_factor)
        if prepared.mask is not None:
            mask = prepared.mask.to(bundle.device, non_blocking=True)
        latents = start_latents(member.request, sigma, noise, picture, mask, bundle.device)
        pool = self.pools.enter(member.state.key)
        try:
            member.position = pool.admit(latents, member.text)
            if mask is not None and picture is not None:
                pool.keep(member.position, mask, picture)
        except Exception:
            if member.position is None:  # else `_leave_pool` does it, with the place
                self.pools.leave(member.state.key)
            raise
        member.encoding = member.text = None
        member.moments = moments

    def _step(self, members: Sequence[DeviceState], padded: int, launched: Launched) -> int:
        """Run one evaluation of each of ``members``, of one key, in ``padded`` U-Net rows; return
        the most rows that ran at a time.

        A step that fails changes nothing, and is run again in parts. After an out-of-memory error
        those that CLIP guides, of which no plan knows, go apart from then on. Where there are none
        the key's steps are to stay at the rows that ran, unless one request alone was the cause.
        """
        try:
            self._step_once(members, padded, launched)
            return sum(member.state.rows for member in members)
        except Exception as error:
            if len(members) == 1:
                self._fail(members[0], error, "failed in a step", launched)
                return 0
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        # Outside the handler: there the error would hold what the failed forward had allocated.
        for_rows = False
        if out_of_memory:
            logger.warning("out of memory with %d rows: run again in parts", padded)
            launched.out_of_memory = True
            for member in members:
                member.state.apart = member.guidance is not None
            for_rows = not any(member.state.apart for member in members)
        launched.ordinary = False
        most = 0
        for part in _parts(members):
            part_rows = sum(member.state.rows for member in part)
            ran = self._step(part, pad_rows(part_rows, self.row_buckets), launched)
            most = max(most, ran)
        if for_rows and not launched.failures:
            filled = pad_rows(most, self.row_buckets)  # the same forward
            launched.row_cap = filled if filled < padded else most
        return most

    def _step_once(self, members: Sequence[DeviceState], padded: int, launched: Launched) -> None:
        pool, tried = self.pools[members[0].state.key], self.denoiser.graphs.tried
        try:
            step = self.denoiser.step(pool, [member.evaluation() for member in members], padded)
        except torch.OutOfMemoryError as error:
            # The frames of the traceback hold the tensors of the forward that failed.
            error = error.with_traceback(None)
            if self.bundle.device.type == "cuda":
                torch.cuda.empty_cache()
            raise error from None
        if self.denoiser.graphs.tried > tried or pool.captured.awaited(step.rows):
            launched.ordinary = False  # it took what no step of this size takes from now on
        if self.denoiser.captures and pool.captured.patience is None:
            launched.ordinary = False  # its launches would be taken for what its text costs
        self.steps.count(step.rows, len(members))
        for member in members:
            if (predicted := step.predicted.get(member.place)) is not None:
                self._preview(member, predicted, launched)

    def _decode(self, members: Sequence[DeviceState], parts: int, launched: Launched) -> None:
        """Run the next of ``parts`` parts of the decode of ``members``, who are of one key.

        Several, in one part, share a pass where passes are captured. One that fails is run again
        one by one, so that only its cause fails.
        """
        tried = self._captures_tried("decode")
        try:
            launched.last = self._decode_once(members, parts)
            if self._captures_tried("decode") > tried:
                launched.ordinary = False
        except Exception as error:
            if len(members) == 1:
                self._fail(members[0], error, "could not be decoded", launched)
                return
        else:
            return
        launched.ordinary = False
        for member in members:
            self._decode([member], parts, launched)
        launched.last = True

    def _decode_once(self, members: Sequence[DeviceState], parts: int) -> bool:
        """Return whether the pictures are on their way; the places are free then."""
        pool = self.pools[members[0].state.key]
        if len(members) > 1 and self.vae_graphs is not None:
            latents = [pool.latents(member.place) for member in members]
            made = decode_together(self.bundle, latents, self.vae_graphs)
            for member, decoded in zip(members, made, strict=True):
                member.decoded = decoded
        else:
            for member in members:
                if member.decoding is None:
                    latent, tile = pool.latents(member.place), member.request.tile
                    member.decoding = Decoding(self.bundle, latent, tile, parts, self.vae_graphs)
                member.decoded = member.decoding.launch()
        if any(member.decoded is None for member in members):
            return False
        for member in members:
            self._leave_pool(member)
            member.decoding = None
        return True

    def _captures_tried(self, *kinds: str) -> int:
        counts = self.graph_counts
        return sum(counts[kind].tried for kind in kinds) if counts else 0

    def _preview(self, member: DeviceState, predicted: torch.Tensor, launched: Launched) -> None:
        """Begin a preview. The step has been taken: one that fails must not have it taken again."""
        if member.previewed == math.inf:
            return
        try:
            drawing = self._previews.begin(predicted, member.previewed)
        except Exception:
            _end_previews(member)
            launched.ordinary = False
            return
        if drawing is not None:
            launched.previews[member.state.ident] = partial(_drawn, member, drawing)
            member.previewed = time.monotonic()
        if self._previews.worked:
            launched.ordinary = False


def _parts(members: Sequence[DeviceState]) -> list[Sequence[DeviceState]]:
    """Return the smaller steps of a step: those apart one by one; where none is, two halves."""
    together = [member for member in members if not member.state.apart]
    if len(together) == len(members):
        middle = len(members) // 2
        return [members[:middle], members[middle:]]
    alone = [[member] for member in members if member.state.apart]
    return [together, *alone] if together else [*alone]


def _drawn(member: DeviceState, drawing: Drawing) -> Pixels | None:
    """Return a preview, or the last one where it cannot be drawn."""
    if member.previewed < math.inf:
        try:
            return drawing()
        except Exception:
            _end_previews(member)
    return member.state.preview


def _end_previews(member: DeviceState) -> None:
    """Draw no more previews of a request; call it where the error is handled, for the log."""
    logger.exception("no more previews of request %s", member.request.request_id)
    member.previewed = math.inf
