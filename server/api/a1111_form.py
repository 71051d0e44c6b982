"""The fields of A1111's `img2img` and `txt2img`."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict

from pipelines.prompt.styles import STYLES
from pipelines.request import (
    ENGINE_MAX_STEPS,
    ENGINE_MIN_STEPS,
    MAX_CFG_SCALE,
    MAX_SEED,
    MaskedContent,
)
from pipelines.samplers.names import (
    A1111_LABELS,
    SCHEDULE_LABELS,
    SamplerChoice,
    UnknownSampler,
    sampler_by_name,
)
from server.errors import InvalidInput
from server.http.errors import NotFound
from server.images.fit import ResizeMode, made_and_answered
from server.images.masks import MAX_BLUR, MAX_PADDING, MaskOptions, MaskReads
from server.img2img.fields import real_number, trimmed_text, truth, whole_number
from server.img2img.form import MAX_PROMPT_LENGTH
from server.img2img.images_request import ImagesRequest

MAX_TOTAL = 16
"""Images of one request: batch_size times n_iter."""
MIN_SIDE = 64
MAX_SIDE = 2048
_RESIZE_MODES = (ResizeMode.STRETCH, ResizeMode.CROP, ResizeMode.PAD, ResizeMode.STRETCH)
"""By number: just resize, crop, fill, and the latent resize, which is done on pixels here."""
_FILLS = (
    MaskedContent.ORIGINAL,
    MaskedContent.ORIGINAL,
    MaskedContent.LATENT_NOISE,
    MaskedContent.LATENT_NOTHING,
)
_MOST_SEED = 2**64 - 1


class A1111Form(BaseModel):
    """The scalar fields; blank and null ones count as left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: Annotated[str, trimmed_text(MAX_PROMPT_LENGTH)] = ""
    negative_prompt: Annotated[str, trimmed_text(MAX_PROMPT_LENGTH)] = ""
    seed: Annotated[int, whole_number(-1, _MOST_SEED)] = -1
    subseed: Annotated[int, whole_number(-1, _MOST_SEED)] = -1
    subseed_strength: Annotated[float, real_number(0, 1)] = 0.0
    sampler_name: Annotated[str, trimmed_text(100)] = ""
    sampler_index: Annotated[str, trimmed_text(100)] = ""
    scheduler: Annotated[str, trimmed_text(100)] = ""
    batch_size: Annotated[int, whole_number(1, MAX_TOTAL)] = 1
    n_iter: Annotated[int, whole_number(1, MAX_TOTAL)] = 1
    steps: Annotated[int, whole_number(ENGINE_MIN_STEPS, ENGINE_MAX_STEPS)] = 50
    cfg_scale: Annotated[float, real_number(0, MAX_CFG_SCALE)] = 7.0
    width: Annotated[int, whole_number(MIN_SIDE, MAX_SIDE)] = 512
    height: Annotated[int, whole_number(MIN_SIDE, MAX_SIDE)] = 512
    denoising_strength: Annotated[float, real_number(0, 1)] = 0.75
    resize_mode: Annotated[int, whole_number(0, 3)] = 0
    mask_blur: Annotated[float, real_number(0, MAX_BLUR)] = 4.0
    inpainting_fill: Annotated[int, whole_number(0, 3)] = 0
    inpaint_full_res: Annotated[bool, truth()] = True
    inpaint_full_res_padding: Annotated[int, whole_number(0, MAX_PADDING)] = 0
    inpainting_mask_invert: Annotated[bool, truth()] = False
    tiling: Annotated[bool, truth()] = False
    include_init_images: Annotated[bool, truth()] = False
    send_images: Annotated[bool, truth()] = True
    script_name: Annotated[str, trimmed_text(200)] = ""

    @property
    def sampler(self) -> SamplerChoice:
        """Return the sampler by its name, its old name, or the one that is A1111's own default.

        Raises NotFound: for a sampler with the words that its clients look for, and with that
        status for a scheduler too, which may be the end of a sampler's name ("Euler", "a"): the
        client that cuts it off asks in its old form then.
        """
        name = self.sampler_name or self.sampler_index or "Euler"
        try:
            return sampler_by_name(name, self.scheduler or "Automatic")
        except UnknownSampler as error:
            labels = A1111_LABELS if error.field == "sampler" else SCHEDULE_LABELS
            known = "; there are " + ", ".join(labels.values())
            if error.field == "scheduler" and error.reason:
                known = ""  # The reason names them.
            raise NotFound(f"{error.field.capitalize()} not found: {error}{known}") from None

    @property
    def count(self) -> int:
        """Return how many images are asked for. Raises InvalidInput."""
        count = self.batch_size * self.n_iter
        if count > MAX_TOTAL:
            raise InvalidInput(
                [f"batch_size, n_iter: {count} images are over the {MAX_TOTAL} of a request"]
            )
        return count

    @property
    def first_step(self) -> int:
        """Return the first step that runs of an image to image.

        A1111 runs int(min(d, 0.999) * steps) + 1 evaluations, with d the denoising strength
        (`sd_samplers_common.setup_img2img_steps`, `sd_samplers_kdiffusion.sample_img2img`).
        """
        return self.steps - int(min(self.denoising_strength, 0.999) * self.steps) - 1

    def asked(
        self,
        styles: tuple[str, ...],
        upload: bytes | None = None,
        mask: bytes | None = None,
    ) -> ImagesRequest:
        """Return what the service is asked."""
        sampler = self.sampler
        made, answered = made_and_answered((self.width, self.height))
        masked = None
        if mask is not None:
            masked = MaskOptions(
                mask,
                MaskReads.OPAQUE_OR_LIGHT,
                invert=self.inpainting_mask_invert,
                blur=self.mask_blur,
                only_masked=self.inpaint_full_res,
                padding=self.inpaint_full_res_padding,
                fill=self.inpainting_fill == 0,
            )
        whole = masked is not None and masked.only_masked
        return ImagesRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            styles=styles,
            tile=self.tiling,
            upload=upload,
            mask=masked,
            masked_content=_FILLS[self.inpainting_fill] if masked else MaskedContent.ORIGINAL,
            width=made[0],
            height=made[1],
            output_size=None if whole else answered,
            resize_mode=_RESIZE_MODES[self.resize_mode],
            image_strength=1 - self.denoising_strength,
            first_step=None if upload is None else self.first_step,
            cfg_scale=self.cfg_scale,
            sampler=sampler.sampler,
            schedule=sampler.schedule,
            steps=self.steps,
            seed=seed_of(self.seed),
            count=self.count,
            variation_seed=seed_of(self.subseed) if self.subseed_strength else None,
            variation_strength=self.subseed_strength,
            previews=True,
            image_field="init_images",
            count_field="batch_size, n_iter",
        )


def seed_of(seed: int) -> int:
    """Return the engine's seed, in 1..4294967295, for one of A1111's; -1 is a random one."""
    if seed < 0:
        return 1 + secrets.randbelow(MAX_SEED)
    return (seed - 1) % MAX_SEED + 1


def styles_of(value: object) -> tuple[tuple[str, ...], list[str]]:
    """Return the styles that are known, by any case and each once, and the names that are not."""
    sent = value if isinstance(value, list) else [value] if value else []
    known = {name.lower(): name for name in STYLES}
    names = [name for name in map(str, sent) if name.strip().lower() not in ("", "none")]
    found = dict.fromkeys(known[name.lower()] for name in names if name.lower() in known)
    return tuple(found), [name for name in names if name.lower() not in known]


def without_effect(fields: Mapping[str, Any], handled: Iterable[str]) -> list[str]:
    """Return the names of fields that were sent and do nothing.

    Clients send all that they know; what is null, empty, false, 0 or -1 asks for nothing.
    """
    taken = set(handled)
    names = [name for name, value in fields.items() if name not in taken and value and value != -1]
    scripts = fields.get("alwayson_scripts")
    if isinstance(scripts, Mapping):
        names.remove("alwayson_scripts") if "alwayson_scripts" in names else None
        names += [f"alwayson_scripts.{name}" for name, value in scripts.items() if value]
    return names
