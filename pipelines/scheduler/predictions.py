"""What requests and units of work are predicted to take, by the cost table and CLIP guidance's.

Pure: no torch and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.request import ClipGuidancePreset
from pipelines.scheduler.batching import GroupKey, StepLimits
from pipelines.scheduler.cost_model import MOST_ERROR, CostTable
from pipelines.scheduler.guidance_cost import GuidanceCosts
from pipelines.scheduler.request_state import RequestState
from pipelines.scheduler.work import Encode, Step, Work


@dataclass
class Predictions:
    """Seconds, by a `CostTable` that learns from each unit of work.

    ``limits`` pad a step's rows. Encodes and decodes have one part for every ``part_pixels``
    latent pixels.
    """

    table: CostTable
    limits: StepLimits
    part_pixels: int
    guidance: GuidanceCosts = field(default_factory=GuidanceCosts)

    def parts(self, key: GroupKey) -> int:
        """Return the units that an encode or a decode of a picture of ``key`` is handed out in."""
        return max(1, -(-key.latent_pixels // self.part_pixels))

    def step(self, key: GroupKey, rows: int) -> float:
        """Return the seconds of a step of ``rows``, padding included."""
        padded = self.limits.padded(rows)
        return self.table.step_seconds(key.latent_pixels, padded, key.text_tokens, key.tile)

    def guiding(self, key: GroupKey, preset: ClipGuidancePreset, rows: int) -> float:
        """Return what guiding one request of ``rows`` adds to a step."""
        return self.guidance.ratio(preset) * self.step(key, rows)

    def encode_part(self, task: RequestState) -> float:
        """Return the seconds of the next part of a request's encode."""
        seconds = self.table.encode_seconds(task.key.latent_pixels) / self.parts(task.key)
        return seconds * task.has_picture + self._text(task)

    def decode_part(self, key: GroupKey) -> float:
        """Return the seconds of one part of a decode."""
        return self.table.decode_seconds(key.latent_pixels) / self.parts(key)

    def alone(self, task: RequestState) -> float:
        """Return what is left of a request on a device of its own."""
        return self.left(task, self.step(task.key, task.rows))

    def left(self, task: RequestState, step_seconds: float) -> float:
        """Return what is left of a request, each of whose steps takes ``step_seconds`` of the
        device, without its guidance."""
        pixels = task.key.latent_pixels
        parts = self.parts(task.key)
        undone = (parts - task.encode_parts_done) / parts
        undone *= task.has_picture and not task.encoded
        encode = self.table.encode_seconds(pixels) * undone + self._text(task)
        decode = self.table.decode_seconds(pixels) * (parts - task.parts_done) / parts
        step_seconds += self.guiding(task.key, task.guidance, task.rows)
        return encode + (task.evaluations - task.done) * step_seconds + decode

    def _text(self, task: RequestState) -> float:
        """Return the seconds left of encoding a request's text, which goes with its picture's first
        part."""
        waits = not task.holds_place
        return self.table.text.encode * task.text_chunks if waits else 0.0

    def learn(self, work: Work, seconds: float, text_chunks: int = 0) -> None:
        """Correct the cost table by what a unit took, in seconds.

        ``text_chunks`` were encoded with a picture's part.
        """
        key, pixels = work.key, work.key.latent_pixels
        # One that hung says nothing; a table that is as wrong is corrected by a few all the same.
        seconds = min(seconds, (1.0 + MOST_ERROR) * work.seconds)
        if isinstance(work, Step) and work.guided:
            self._learn_guidance(work, seconds)
        elif isinstance(work, Step):
            self.table.observe_step(pixels, work.padded, seconds, key.text_tokens, key.tile)
        elif isinstance(work, Encode):
            self.table.observe_encode(pixels, seconds, work.parts, text_chunks)
        elif not work.mates:
            self.table.observe_decode(pixels, seconds * work.parts)

    def _learn_guidance(self, work: Step, seconds: float) -> None:
        """Count what a step took beyond its rows as its guidance's, where that is of one preset."""
        presets = {preset for preset, _ in work.guided}
        alone = sum(self.step(work.key, rows) for _, rows in work.guided)
        if len(presets) == 1 and alone > 0.0:
            added = seconds - self.step(work.key, work.rows)
            self.guidance.observe(presets.pop(), added / alone)
