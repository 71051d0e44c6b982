"""The form of a request and the answers, with what OpenAPI shows of them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from pipelines.prompt.styles import STYLES
from pipelines.request import (
    CONTRACT_SAMPLERS,
    MAX_CFG_SCALE,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_SIDE,
    MIN_STEPS,
    SIDE_MULTIPLE,
    ClipGuidancePreset,
    Sampler,
    default_sampler,
)
from server.images.fit import IMAGE_FIELD as IMAGE_FIELD
from server.images.fit import ResizeMode as ResizeMode
from server.images.masks import MaskOptions
from server.img2img.fields import (
    choice,
    documented,
    real_number,
    trimmed_text,
    truth,
    validated,
    whole_number,
)
from server.img2img.images_request import ImagesRequest

MAX_PROMPT_LENGTH = 2000
MASK_FIELD = "mask"
STYLE_PRESETS = tuple(STYLES)


def _side(description: str) -> WithJsonSchema:
    return documented(
        type="integer",
        minimum=MIN_SIDE,
        maximum=MAX_SIDE,
        multipleOf=SIDE_MULTIPLE,
        description=f"{description} A multiple of {SIDE_MULTIPLE}. Left out, it follows from "
        "the picture.",
    )


NOT_BLANK = r"[^\s\x1c-\x1f\x85]"
"""A character that is no blank to Python. Those named are none to JSON Schema's `\\s`, which is
ECMA-262's. Blank text counts as left out."""


class ImageToImageForm(BaseModel):
    """The text fields of a request. Built from strings; blank ones count as left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: Annotated[
        str,
        trimmed_text(MAX_PROMPT_LENGTH),
        documented(
            type="string",
            minLength=1,
            maxLength=MAX_PROMPT_LENGTH,
            pattern=NOT_BLANK,
            description="What the picture should become.",
            examples=["a blue circle on a grass background"],
        ),
    ]
    width: Annotated[
        int | None,
        whole_number(MIN_SIDE, MAX_SIDE, multiple_of=SIDE_MULTIPLE),
        _side("Width of the picture to make, in pixels."),
    ] = None
    height: Annotated[
        int | None,
        whole_number(MIN_SIDE, MAX_SIDE, multiple_of=SIDE_MULTIPLE),
        _side("Height of the picture to make, in pixels."),
    ] = None
    image_strength: Annotated[
        float,
        real_number(0, 1),
        documented(
            type="number",
            minimum=0,
            maximum=1,
            default=0.35,
            description="How much of init_image stays: 1 gives it back, 0 ignores it.",
        ),
    ] = 0.35
    cfg_scale: Annotated[
        float,
        real_number(0, MAX_CFG_SCALE),
        documented(
            type="number",
            minimum=0,
            maximum=MAX_CFG_SCALE,
            default=7,
            description="How strictly the picture follows the prompt: low is freer, high harsher.",
        ),
    ] = 7.0
    clip_guidance_preset: Annotated[
        ClipGuidancePreset,
        choice(ClipGuidancePreset),
        documented(
            type="string",
            enum=[preset.value for preset in ClipGuidancePreset],
            default=ClipGuidancePreset.NONE.value,
            description="Steers the picture towards the prompt by CLIP's own judgement.",
        ),
    ] = ClipGuidancePreset.NONE
    sampler: Annotated[
        Sampler | None,
        choice(CONTRACT_SAMPLERS),
        documented(
            type="string",
            enum=[sampler.value for sampler in CONTRACT_SAMPLERS],
            description=f"Left out: {default_sampler(ClipGuidancePreset.NONE)}, or "
            f"{default_sampler(ClipGuidancePreset.SIMPLE)} with CLIP guidance.",
        ),
    ] = None
    seed: Annotated[
        int,
        whole_number(0, MAX_SEED),
        documented(
            type="integer",
            minimum=0,
            maximum=MAX_SEED,
            default=0,
            description="The same seed and request give the same picture; 0 is a random one.",
        ),
    ] = 0
    steps: Annotated[
        int,
        whole_number(MIN_STEPS, MAX_STEPS),
        documented(
            type="integer",
            minimum=MIN_STEPS,
            maximum=MAX_STEPS,
            default=30,
            description="In how many steps the picture forms: more take longer, each adds less.",
        ),
    ] = 30
    style_preset: Annotated[
        str | None,
        choice(STYLE_PRESETS),
        documented(type="string", enum=list(STYLE_PRESETS), description="A style to work in."),
    ] = None
    negative_prompt: Annotated[
        str,
        trimmed_text(MAX_PROMPT_LENGTH),
        documented(
            type="string",
            maxLength=MAX_PROMPT_LENGTH,
            description="What to avoid. An addition to the hosted service's fields.",
        ),
    ] = ""
    resize_mode: Annotated[
        ResizeMode,
        choice(ResizeMode),
        documented(
            type="string",
            enum=[mode.value for mode in ResizeMode],
            default=ResizeMode.CROP.value,
            description="How init_image is fitted: centre crop, stretch, or pad with white. "
            "An addition to the hosted service's fields.",
        ),
    ] = ResizeMode.CROP
    previews: Annotated[
        bool,
        truth(),
        documented(
            type="boolean",
            default=False,
            description="With Accept: text/event-stream, send a small picture with every progress "
            "event. An addition to the hosted service's fields.",
        ),
    ] = False

    def images_request(
        self, upload: bytes | bytearray, mask: bytes | bytearray | None
    ) -> ImagesRequest:
        """Return what the service is asked, with the sampler and the seed chosen."""
        return ImagesRequest(
            prompt=self.prompt,
            upload=upload,
            negative_prompt=self.negative_prompt,
            styles=() if self.style_preset is None else (self.style_preset,),
            mask=None if mask is None else MaskOptions(mask),
            width=self.width,
            height=self.height,
            resize_mode=self.resize_mode,
            image_strength=self.image_strength,
            cfg_scale=self.cfg_scale,
            clip_guidance=self.clip_guidance_preset,
            sampler=self.chosen_sampler,
            steps=self.steps,
            seed=self.chosen_seed(),
            previews=self.previews,
            image_field=IMAGE_FIELD,
        )

    @property
    def chosen_sampler(self) -> Sampler:
        return self.sampler or default_sampler(self.clip_guidance_preset)

    def chosen_seed(self) -> int:
        """The seed, or a random one in 1..4294967295 where it is 0."""
        return self.seed or 1 + secrets.randbelow(MAX_SEED)


TEXT_FIELDS = tuple(ImageToImageForm.model_fields)
FILE_FIELDS = frozenset((IMAGE_FIELD, MASK_FIELD))


def parse_form(texts: Mapping[str, str]) -> tuple[ImageToImageForm | None, list[str]]:
    """Return the form, or None and one line for each bad field: `steps: 5 is not in 10..50`."""
    return validated(ImageToImageForm, texts)


class ImageData(BaseModel):
    """The data of a success."""

    image: str = Field(description="The picture: a PNG file, base64 encoded.")
    seed: int = Field(description="The seed; sent again, it gives the same picture.")
    filtered: bool = Field(
        False,
        description="True where the safety check had the picture blurred; else left out.",
        exclude_if=lambda filtered: not filtered,
    )


class ImageResponse(BaseModel):
    """A success."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "code": 0,
                "message": "success",
                "data": {"image": "iVBORw0KGgo...", "seed": 1050625087},
            }
        }
    )

    code: int = Field(description="0.")
    message: str = Field(description="`success`.")
    data: ImageData


class FailureAnswer(BaseModel):
    """A failure."""

    code: int = Field(description="-1.")
    message: str = Field(description="The reason.")
    data: None = None


def form_request_body() -> dict[str, Any]:
    """OpenAPI's requestBody of the multipart form."""
    schema = ImageToImageForm.model_json_schema()
    image = {
        "type": "string",
        "format": "binary",
        "description": "The picture to start from: PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF or HEIC.",
    }
    mask = {
        "type": "string",
        "format": "binary",
        "description": "An image whose white is made anew. What is black or transparent keeps "
        "init_image to the bit. An addition to the hosted service's fields.",
    }
    properties = {IMAGE_FIELD: image, **schema["properties"], MASK_FIELD: mask}
    for field_schema in properties.values():
        field_schema.pop("title", None)
        if field_schema.get("default", 0) in (None, ""):
            del field_schema["default"]
            # Blank counts as left out; without this, documentation pages make a value up.
            field_schema["examples"] = [""]
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "title": "ImageToImageForm",
                    "required": [IMAGE_FIELD, *schema["required"]],
                    "properties": properties,
                }
            }
        },
    }


def failure_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's failures of these statuses, with an example each; without any, all that a
    request for an image may meet."""
    examples = {
        400: "cfg_scale: 40 is not in 0..35; init_image: is required",
        401: "no API key: send it in the Authentication or the Authorization header",
        402: "not enough credits: this picture costs 0.5, 0.3 are left",
        404: "there is no such run, or not any more",
        408: "the upload is 15 s behind 4 KiB/s",
        409: "Idempotency-Key: was used for another request; take a new one",
        413: "init_image: the file is over 20 MiB",
        415: "Content-Type is application/json; send the fields as multipart/form-data",
        429: "this key may ask 30 per 1 minute",
        500: "internal error, request id 6f1c0a52b7e94b0f9a1f3f5f7c2d8e10",
        503: "the server is busy; try again in 4 s",
        504: "the picture was not finished within 300 s",
    }
    return {
        status: {
            "model": FailureAnswer,
            "description": {503: "Busy, loading or shutting down"}.get(status, ""),
            "content": {
                "application/json": {"example": {"code": -1, "message": message, "data": None}}
            },
        }
        for status, message in examples.items()
        if (status in statuses if statuses else status != 404)
    }
