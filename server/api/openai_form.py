"""The fields of OpenAI's image endpoints, with ours beside them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from pipelines.prompt.styles import STYLES
from pipelines.request import (
    ENGINE_MAX_STEPS,
    ENGINE_MIN_STEPS,
    MAX_CFG_SCALE,
    MAX_SEED,
    Sampler,
    SigmaSchedule,
)
from pipelines.samplers.names import SamplerChoice, UnknownSampler, sampler_by_name
from server.images.encode import QUALITY, ImageFormat
from server.images.fit import made_and_answered
from server.img2img.fields import choice, real_number, refuse, trimmed_text, truth, whole_number
from server.img2img.form import MAX_PROMPT_LENGTH
from server.img2img.images_request import MAX_IMAGES

MIN_OUTPUT_SIDE = 64
MAX_OUTPUT_SIDE = 4096
MAX_PARTIAL_IMAGES = 3
FORMATS = {"png": ImageFormat.PNG, "jpeg": ImageFormat.JPEG, "webp": ImageFormat.WEBP}
ALIASES = {"num_inference_steps": "steps", "guidance_scale": "cfg_scale"}
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII | re.IGNORECASE)


def _size(value: object) -> object:
    text = str(value).strip()
    if text.lower() == "auto":
        return None
    match = _SIZE.fullmatch(text)
    sides = (int(match[1]), int(match[2])) if match else ()
    if not sides or not all(MIN_OUTPUT_SIDE <= side <= MAX_OUTPUT_SIDE for side in sides):
        raise refuse(
            text,
            "is neither auto nor a size such as 512x512 with sides in "
            f"{MIN_OUTPUT_SIDE}..{MAX_OUTPUT_SIDE}",
        )
    return sides


def _sampler(value: object) -> object:
    try:
        return sampler_by_name(str(value).strip())
    except UnknownSampler as error:
        reason = str(error).encode("utf-8", "backslashreplace").decode()
        raise PydanticCustomError("rule", "{reason}", {"reason": reason}) from None


class OpenAIForm(BaseModel):
    """The text fields of a request. Built from texts; blank ones count as left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    prompt: Annotated[str, trimmed_text(MAX_PROMPT_LENGTH)]
    model: Annotated[str, trimmed_text(200)] = ""
    n: Annotated[int, whole_number(1, MAX_IMAGES)] = 1
    size: Annotated[tuple[int, int] | None, BeforeValidator(_size)] = None
    output_format: Annotated[str, choice(tuple(FORMATS))] = "png"
    output_compression: Annotated[int | None, whole_number(0, 100)] = None
    response_format: Annotated[str, choice(("b64_json", "url"))] = "b64_json"
    stream: Annotated[bool, truth()] = False
    partial_images: Annotated[int, whole_number(0, MAX_PARTIAL_IMAGES)] = 0
    image_strength: Annotated[float | None, real_number(0, 1)] = None
    negative_prompt: Annotated[str, trimmed_text(MAX_PROMPT_LENGTH)] = ""
    seed: Annotated[int, whole_number(0, MAX_SEED)] = 0
    steps: Annotated[int, whole_number(ENGINE_MIN_STEPS, ENGINE_MAX_STEPS)] = 30
    cfg_scale: Annotated[float, real_number(0, MAX_CFG_SCALE)] = 7.0
    sampler: Annotated[SamplerChoice, BeforeValidator(_sampler)] = SamplerChoice(
        Sampler.K_DPMPP_2M, SigmaSchedule.AUTOMATIC
    )
    style_preset: Annotated[str | None, choice(tuple(STYLES))] = None

    @property
    def format(self) -> ImageFormat:
        return FORMATS[self.output_format]

    @property
    def compression(self) -> int:
        """Return the quality of JPEG and WebP."""
        return QUALITY if self.output_compression is None else self.output_compression

    @property
    def sizes(self) -> dict[str, Any]:
        """Return what the service is asked: the size to make and the size to answer in."""
        if self.size is None:
            return {}
        (width, height), output = made_and_answered(self.size)
        return {"width": width, "height": height, "output_size": output}


TEXT_FIELDS = frozenset((*OpenAIForm.model_fields, *ALIASES))
