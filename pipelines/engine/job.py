"""A request inside the engine: what has been made of it so far, and what it does next."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pipelines.denoise.batch import Evaluation
from pipelines.denoise.clip_guidance import GuidanceRun
from pipelines.engine.handle import GenerationHandle
from pipelines.prompt.encoder import PromptChunks
from pipelines.request import GenerationRequest, Pixels
from pipelines.samplers.programs import SamplerProgram
from pipelines.scheduler.batching import GroupKey
from pipelines.vae.decode import Decoded, Decoding
from pipelines.vae.encode import Encoding
from pipelines.vae.noise import RequestNoise


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


@dataclass(eq=False)
class Job:
    """A request inside the engine."""

    ident: int
    handle: GenerationHandle
    key: GroupKey
    texts: PromptChunks
    arrived: float
    program: SamplerProgram | None = None
    noise: RequestNoise | None = None
    digest: bytes | None = None
    text: torch.Tensor | None = None  # (2, T, D)
    encoding: Encoding | None = None
    decoding: Decoding | None = None
    position: int = -1
    done: int = 0
    preview: Pixels | None = None
    decoded: Decoded | None = None
    timings: dict[str, float] = field(default_factory=dict)
    guidance: GuidanceRun | None = field(init=False)

    def __post_init__(self) -> None:
        self.guidance = GuidanceRun.of(self.request)

    @property
    def request(self) -> GenerationRequest:
        return self.handle.request

    def spend(self, stage: str, seconds: float) -> None:
        """Add to what a stage of this request took."""
        self.timings[stage] = self.timings.get(stage, 0.0) + seconds


def program_of(job: Job) -> SamplerProgram:
    assert job.program is not None
    return job.program


def evaluation_of(job: Job) -> Evaluation:
    """Return a job's part in the next step."""
    program, noise = program_of(job), job.noise
    row = program.steps[job.done]
    assert noise is not None
    draw = None if row.noise is None else noise.steps[row.noise]
    return Evaluation(
        job.position,
        row,
        job.request.cfg_scale,
        program.slots,
        draw,
        job.request.previews,
        job.guidance,
    )
