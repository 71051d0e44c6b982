"""What every API asks of the service, once its own rules have checked it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from pipelines.prompt.styles import StyledPrompt, apply_style
from pipelines.request import (
    MAX_SEED,
    MAX_SIDE,
    ClipGuidancePreset,
    GenerationRequest,
    MaskedContent,
    Pixels,
    Sampler,
    SigmaSchedule,
)
from server.accounts.pricing import price
from server.images.fit import ResizeMode
from server.images.masks import Box, MaskOptions, MaskReads, composite

MAX_IMAGES = 10
MAX_ANSWER_PIXELS = 16 * MAX_SIDE**2
"""What the images of one answer may have together, where there are several: the most that any API
lets a request ask for fit as they are made; enlarged afterwards, so many could not be held."""


@dataclass(frozen=True)
class ImagesRequest:
    """One or more images to make, that differ in their seeds alone.

    ``upload`` None asks for images from noise, of `width` x `height`. ``styles`` are applied one
    after the other. ``first_step`` counts the form's steps; None lets `image_strength` say it.
    ``keep_size`` and ``output_size`` ask for images of the upload's own or another size than the
    ones that are made. ``own_mask_strength`` says that an upload with transparent pixels is its own
    mask, with that `image_strength`: only the decoded upload tells (`seen`). ``image_field`` is the
    API's name of the upload, ``count_field`` that of how many images it asks for.
    """

    prompt: str
    upload: bytes | bytearray | None = None
    negative_prompt: str = ""
    styles: tuple[str, ...] = ()
    tile: bool = False
    mask: MaskOptions | None = None
    masked_content: MaskedContent = MaskedContent.ORIGINAL
    width: int | None = None
    height: int | None = None
    auto_sizes: bool = True
    resize_mode: ResizeMode = ResizeMode.CROP
    keep_size: bool = False
    output_size: tuple[int, int] | None = None
    image_strength: float = 0.35
    own_mask_strength: float | None = None
    first_step: int | None = None
    cfg_scale: float = 7.0
    clip_guidance: ClipGuidancePreset = ClipGuidancePreset.NONE
    sampler: Sampler = Sampler.K_DPMPP_2M
    schedule: SigmaSchedule = SigmaSchedule.AUTOMATIC
    steps: int = 30
    seed: int = 1
    count: int = 1
    variation_seed: int | None = None
    variation_strength: float = 0.0
    previews: bool = False
    image_field: str = "init_image"
    count_field: str = "samples"

    @property
    def needs_own_size(self) -> bool:
        """Return whether the upload is needed whole, with its opacity, before it is fitted."""
        plain = self.mask is None and self.own_mask_strength is None
        return not plain or self.keep_size or self.output_size is not None

    @property
    def answers_own_size(self) -> bool:
        """Return whether the images that are answered have the upload's own size."""
        return self.keep_size or (self.mask is not None and self.mask.only_masked)

    def seen(self, own: Pixels) -> ImagesRequest:
        """Return what is asked now that the upload is known, `(height, width, 4)` with opacity."""
        if self.own_mask_strength is None or own[..., 3].min() == 255:
            return self
        mask = MaskOptions(None, MaskReads.TRANSPARENT, field=self.image_field)
        return replace(self, mask=mask, image_strength=self.own_mask_strength)

    @property
    def styled(self) -> StyledPrompt:
        """Return the prompts with the styles applied."""
        styled = StyledPrompt(self.prompt, self.negative_prompt, tile=self.tile)
        for name in self.styles:
            applied = apply_style(name, styled.prompt, styled.negative_prompt)
            styled = replace(applied, tile=applied.tile or styled.tile)
        return styled


@dataclass(frozen=True, eq=False)
class Finishing:
    """What is done with a made image: pasted into ``base`` at ``box`` under ``mask``, resized.

    Base and mask have one size, in RGB and L. ``size`` is what the result has. This is the one
    place where pixels are mixed under a mask: twice would square its weights.
    """

    base: Image.Image | None = None
    mask: Image.Image | None = None
    box: Box | None = None
    size: tuple[int, int] | None = None

    def apply(self, made: Pixels) -> Pixels:
        """Return the image to hand out, `(height, width, 3)` uint8. Blocking."""
        if self.base is None and self.size is None:
            return made
        image = Image.fromarray(made)
        if self.base is not None:
            box = self.box or (0, 0, *self.base.size)
            extent = (box[2] - box[0], box[3] - box[1])
            if image.size != extent:
                image = image.resize(extent, Image.Resampling.LANCZOS)
            whole = self.base.copy()
            whole.paste(image, box[:2])
            image = whole if self.mask is None else composite(whole, self.base, self.mask)
        if self.size is not None and image.size != self.size:
            image = image.resize(self.size, Image.Resampling.LANCZOS)
        return np.array(image)


@dataclass(frozen=True, eq=False)
class Plan:
    """What the engine is asked, image by image, and what is done with what it returns."""

    generations: tuple[GenerationRequest, ...]
    finishing: Finishing = field(default_factory=Finishing)
    count_field: str = "samples"
    """The API's name of how many images it asks for."""

    @property
    def first(self) -> GenerationRequest:
        return self.generations[0]

    @property
    def price(self) -> int:
        """The price of one of the images, in tenths of a credit."""
        return price(self.first.width, self.first.height, self.first.steps)


def seeds_from(seed: int, count: int) -> list[int]:
    """Return ``count`` seeds from ``seed`` on; 1 follows on the largest."""
    return [(seed - 1 + index) % MAX_SEED + 1 for index in range(count)]


def generations_of(
    asked: ImagesRequest, image: Pixels, mask: Pixels | None, *, previews: bool, request_id: str
) -> tuple[GenerationRequest, ...]:
    """Return a request to the engine for each image.

    ``image`` and ``mask`` have the size to make; an image from noise is a canvas of that size. As
    in A1111, the seeds count up, or those of the variations where there are any.
    """
    styled = asked.styled
    first = GenerationRequest(
        image=image,
        prompt=styled.prompt,
        negative_prompt=styled.negative_prompt,
        image_strength=asked.image_strength,
        cfg_scale=asked.cfg_scale,
        sampler=asked.sampler,
        schedule=asked.schedule,
        steps=asked.steps,
        seed=asked.seed,
        clip_guidance=asked.clip_guidance,
        tile=styled.tile,
        previews=asked.previews and previews,
        request_id=request_id,
        from_noise=asked.upload is None,
        mask=mask,
        masked_content=asked.masked_content,
        variation_seed=asked.variation_seed,
        variation_strength=asked.variation_strength,
        first_step=asked.first_step,
        batch=uuid.uuid4().hex if asked.count > 1 else "",
    )
    if asked.variation_seed is not None and asked.variation_strength > 0:
        variations = seeds_from(asked.variation_seed, asked.count)
        return tuple(replace(first, variation_seed=seed) for seed in variations)
    return tuple(replace(first, seed=seed) for seed in seeds_from(asked.seed, asked.count))
