"""Requests to the engine, their progress and their results.

All three are frozen dataclasses without any HTTP or torch in them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""An upright sRGB picture, ``(height, width, 3)`` uint8."""

MIN_SIDE = 320
MAX_SIDE = 1536
SIDE_MULTIPLE = 64
MIN_STEPS = 10
MAX_STEPS = 50
MAX_ENGINE_STEPS = 150
"""The engine takes 1 to this many steps; MIN_STEPS and MAX_STEPS are the contract's range."""
MAX_CFG_SCALE = 35.0
MAX_SEED = 2**32 - 1


class Sampler(StrEnum):
    """The samplers of the engine; `CONTRACT_SAMPLERS` are the ten that the contract names."""

    DDIM = "DDIM"
    DDPM = "DDPM"
    K_DPMPP_2M = "K_DPMPP_2M"
    K_DPMPP_2S_ANCESTRAL = "K_DPMPP_2S_ANCESTRAL"
    K_DPM_2 = "K_DPM_2"
    K_DPM_2_ANCESTRAL = "K_DPM_2_ANCESTRAL"
    K_EULER = "K_EULER"
    K_EULER_ANCESTRAL = "K_EULER_ANCESTRAL"
    K_HEUN = "K_HEUN"
    K_LMS = "K_LMS"
    K_DPMPP_2M_SDE = "K_DPMPP_2M_SDE"
    K_DPMPP_SDE = "K_DPMPP_SDE"
    K_DPMPP_3M_SDE = "K_DPMPP_3M_SDE"
    UNIPC = "UNIPC"
    LCM = "LCM"


CONTRACT_SAMPLERS = (
    Sampler.DDIM,
    Sampler.DDPM,
    Sampler.K_DPMPP_2M,
    Sampler.K_DPMPP_2S_ANCESTRAL,
    Sampler.K_DPM_2,
    Sampler.K_DPM_2_ANCESTRAL,
    Sampler.K_EULER,
    Sampler.K_EULER_ANCESTRAL,
    Sampler.K_HEUN,
    Sampler.K_LMS,
)


class SigmaSchedule(StrEnum):
    """How a sampler's noise levels are spread; AUTOMATIC is the sampler's own way."""

    AUTOMATIC = "AUTOMATIC"
    KARRAS = "KARRAS"
    EXPONENTIAL = "EXPONENTIAL"
    SGM_UNIFORM = "SGM_UNIFORM"
    AYS = "AYS"


class ClipGuidancePreset(StrEnum):
    """CLIP guidance, by the contract's names."""

    FAST_BLUE = "FAST_BLUE"
    FAST_GREEN = "FAST_GREEN"
    NONE = "NONE"
    SIMPLE = "SIMPLE"
    SLOW = "SLOW"
    SLOWER = "SLOWER"
    SLOWEST = "SLOWEST"


def default_sampler(clip_guidance: ClipGuidancePreset) -> Sampler:
    """The sampler of a request that names none: an ancestral one under CLIP guidance."""
    if clip_guidance is ClipGuidancePreset.NONE:
        return Sampler.K_DPMPP_2M
    return Sampler.K_DPMPP_2S_ANCESTRAL


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One picture to make. Values are checked at the door; here they are taken as valid.

    ``image`` has the very size of the picture to make. ``image_strength`` is in [0, 1] and the
    denoising strength is ``1 - image_strength``. ``seed`` is in 1..2**32 - 1. ``tile`` asks for
    circular padding, so that the picture tiles without a seam. ``previews`` asks for small
    pictures of the unfinished one with the progress.
    """

    image: Pixels
    prompt: str
    negative_prompt: str = ""
    image_strength: float = 0.35
    cfg_scale: float = 7.0
    sampler: Sampler = Sampler.K_DPMPP_2M
    steps: int = 30
    seed: int = 1
    clip_guidance: ClipGuidancePreset = ClipGuidancePreset.NONE
    tile: bool = False
    previews: bool = False
    request_id: str = ""
    schedule: SigmaSchedule = SigmaSchedule.AUTOMATIC

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        return int(self.image.shape[0])


@dataclass(frozen=True, eq=False)
class Progress:
    """The progress of a request: ``step`` U-Net evaluations done of ``steps``.

    ``preview`` is the predicted picture, a pixel a latent, (h, w, 3) uint8, if it was asked for.
    """

    step: int
    steps: int
    queue_position: int = 0
    preview: Pixels | None = None


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """A finished picture, ``(height, width, 3)`` uint8, with what it took."""

    image: Pixels
    seed: int
    evaluations: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: ``queued``, ``prepare``, ``denoise``, ``decode``."""
