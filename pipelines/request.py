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

Mask = npt.NDArray[np.uint8]
"""What is made anew, ``(height, width)`` uint8: 255 anew, 0 kept, values between blend."""

MIN_SIDE = 320
MAX_SIDE = 1536
SIDE_MULTIPLE = 64
MIN_STEPS = 10
"""The contract's form takes no fewer steps."""
MAX_STEPS = 50
"""The contract's form takes no more steps."""
ENGINE_MIN_STEPS = 1
"""The engine takes no fewer steps, whatever the protocol."""
ENGINE_MAX_STEPS = 150
"""The engine takes no more steps, whatever the protocol."""
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


class MaskedContent(StrEnum):
    """What the masked area starts from, before the noise of the first step: A1111's
    ``inpainting_fill`` 1, 2 and 3. (Its 0, 'fill', is a change of the picture's pixels.)
    """

    ORIGINAL = "original"
    LATENT_NOISE = "latent noise"
    LATENT_NOTHING = "latent nothing"


def default_sampler(clip_guidance: ClipGuidancePreset) -> Sampler:
    """The sampler of a request that names none: an ancestral one under CLIP guidance."""
    if clip_guidance is ClipGuidancePreset.NONE:
        return Sampler.K_DPMPP_2M
    return Sampler.K_DPMPP_2S_ANCESTRAL


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One picture to make. Values are checked at the door; here they are taken as valid.

    ``image`` has the very size of the picture to make. ``image_strength`` is in [0, 1] and the
    denoising strength is ``1 - image_strength``. ``steps`` is in 1..150. ``seed`` is in
    1..2**32 - 1. ``tile`` asks for circular padding, so that the picture tiles without a seam.
    ``previews`` asks for small pictures of the unfinished one with the progress.

    ``from_noise`` makes ``image`` a canvas that gives the size alone: nothing is encoded, the first
    latents are pure noise at the first sigma, and all steps run, whatever ``image_strength`` is.
    It takes no ``mask``.

    ``first_step`` is the index, in 0..steps, of the first step that runs: at ``steps`` none does,
    and the result is the image. None finds it from ``image_strength``.

    ``mask`` has the size of ``image`` and is as soft as it is to be: nothing here blurs it. It
    keeps latents; the result is what they decode to, as a whole, and whoever has the picture that
    is to be kept mixes the two. ``masked_content`` is what the mask's area starts from.

    ``variation_seed`` is the other seed of the first noise (A1111's ``subseed``), which is
    ``variation_strength``, in [0, 1], of the way from that of ``seed`` to that of
    ``variation_seed``. At None, or at strength 0, ``seed`` alone counts.

    ``batch`` is one name for all pictures that were asked for together, where they are several.
    """

    image: Pixels
    prompt: str
    negative_prompt: str = ""
    image_strength: float = 0.35
    cfg_scale: float = 7.0
    sampler: Sampler = Sampler.K_DPMPP_2M
    schedule: SigmaSchedule = SigmaSchedule.AUTOMATIC
    steps: int = 30
    seed: int = 1
    clip_guidance: ClipGuidancePreset = ClipGuidancePreset.NONE
    tile: bool = False
    previews: bool = False
    request_id: str = ""
    from_noise: bool = False
    first_step: int | None = None
    mask: Mask | None = None
    masked_content: MaskedContent = MaskedContent.ORIGINAL
    variation_seed: int | None = None
    variation_strength: float = 0.0
    batch: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError where fields contradict one another."""
        if self.first_step is not None and not 0 <= self.first_step <= self.steps:
            raise ValueError(f"first_step: {self.first_step}, must be in 0..{self.steps}")
        if self.mask is not None:
            if self.from_noise:
                raise ValueError("mask: a picture that starts from noise takes none")
            if self.mask.shape != self.image.shape[:2] or self.mask.dtype != np.uint8:
                raise ValueError(
                    f"mask: {self.mask.shape} {self.mask.dtype}, must be uint8 of the image's size "
                    f"{self.image.shape[:2]}"
                )

    @property
    def strength(self) -> float:
        """Return the share of the steps that does not run, in [0, 1].

        At 1 none runs, and the result is the image.
        """
        if self.from_noise:
            return 0.0
        return self.image_strength if self.first_step is None else self.first_step / self.steps

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        return int(self.image.shape[0])


class Stage(StrEnum):
    """What is done with a request at present."""

    QUEUED = "queued"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"


@dataclass(frozen=True, eq=False)
class Progress:
    """The progress of a request.

    ``step`` of the ``steps`` that it asked for are done, or were skipped: at image_strength 0.35
    30 steps begin with 11 and end with 30. ``evaluation`` of the ``evaluations`` of the U-Net are
    done; some samplers have two a step. ``queue_position`` counts from 1 while it waits.
    ``preview`` is the predicted picture, (h, w, 3) uint8, if it was asked for: a pixel a latent, or
    a tiny VAE's of up to 256 to a side, the same object until there is a new one.
    ``seconds_left`` is what the cost model predicts until the picture is there, None if it was not
    asked.
    """

    step: int
    steps: int
    evaluation: int
    evaluations: int
    queue_position: int = 0
    preview: Pixels | None = None
    stage: Stage | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """A finished picture, ``(height, width, 3)`` uint8, with what it took."""

    image: Pixels
    seed: int
    evaluations: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: ``queued``, ``prepare`` (host), ``encode``, ``denoise``, ``decode``."""
