"""The fields of Stability's v1 generation endpoints."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict

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
from server.api.values import form_of_json
from server.errors import InvalidInput
from server.http.json_body import JsonBody
from server.img2img.fields import choice, decimal_number, real_number, whole_number
from server.img2img.form import MAX_PROMPT_LENGTH
from server.img2img.images_request import MAX_IMAGES, ImagesRequest

MAX_PROMPTS = 50
MAX_WEIGHT = 10.0
PROMPT_FIELDS = frozenset(
    f"text_prompts[{index}][{part}]" for index in range(100) for part in ("text", "weight")
)
_PROMPT = re.compile(r"text_prompts\[(\d+)\]\[(text|weight)\]")


class StabilityForm(BaseModel):
    """The text fields of a request beside its prompts; blank ones count as left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cfg_scale: Annotated[float, real_number(0, MAX_CFG_SCALE)] = 7.0
    clip_guidance_preset: Annotated[ClipGuidancePreset, choice(ClipGuidancePreset)] = (
        ClipGuidancePreset.NONE
    )
    sampler: Annotated[Sampler | None, choice(CONTRACT_SAMPLERS)] = None
    samples: Annotated[int, whole_number(1, MAX_IMAGES)] = 1
    seed: Annotated[int, whole_number(0, MAX_SEED)] = 0
    steps: Annotated[int, whole_number(MIN_STEPS, MAX_STEPS)] = 30
    style_preset: Annotated[str | None, choice(tuple(STYLES))] = None

    def asked(self, prompts: tuple[str, str], **more: Any) -> ImagesRequest:
        """Return what the service is asked, by a prompt and a negative prompt."""
        return ImagesRequest(
            prompt=prompts[0],
            negative_prompt=prompts[1],
            styles=() if self.style_preset is None else (self.style_preset,),
            cfg_scale=self.cfg_scale,
            clip_guidance=self.clip_guidance_preset,
            sampler=self.sampler or default_sampler(self.clip_guidance_preset),
            steps=self.steps,
            seed=self.seed or 1 + secrets.randbelow(MAX_SEED),
            count=self.samples,
            **more,
        )


class ImageToImageForm(StabilityForm):
    """The fields of `image-to-image`."""

    init_image_mode: Annotated[str, choice(("IMAGE_STRENGTH", "STEP_SCHEDULE"))] = "IMAGE_STRENGTH"
    image_strength: Annotated[float, real_number(0, 1)] = 0.35
    step_schedule_start: Annotated[float, real_number(0, 1)] = 0.65

    @property
    def strength(self) -> float:
        """Return the image strength: a schedule that starts at s leaves 1 - s of the image."""
        if self.init_image_mode == "STEP_SCHEDULE":
            return round(1 - self.step_schedule_start, 6)
        return self.image_strength


class MaskingForm(StabilityForm):
    """The fields of `masking`. image_strength is not Stability's, but clients send it."""

    mask_source: Annotated[
        str, choice(("INIT_IMAGE_ALPHA", "MASK_IMAGE_WHITE", "MASK_IMAGE_BLACK"))
    ]
    image_strength: Annotated[float, real_number(0, 1)] = 0.0


def _side() -> Any:
    return whole_number(MIN_SIDE, MAX_SIDE, multiple_of=SIDE_MULTIPLE)


class TextToImageForm(StabilityForm):
    """The fields of `text-to-image`."""

    width: Annotated[int, _side()] = 512
    height: Annotated[int, _side()] = 512


def prompts_of_form(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the texts and weights of `text_prompts[i][...]` fields, whose numbers may have gaps.

    A text that is missing is returned as blank.
    """
    found: dict[int, dict[str, str]] = {}
    for name, text in texts.items():
        if match := _PROMPT.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = text
    return [(parts.get("text", ""), parts.get("weight", "")) for _, parts in sorted(found.items())]


def prompts_of_json(value: object) -> list[tuple[str, str]]:
    """Return the texts and weights of a list of objects. Raises InvalidInput."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidInput(["text_prompts: is no list of objects with text and weight"])
    _check_count(len(value))
    pairs = []
    problems: list[str] = []
    for index, item in enumerate(value):
        form = form_of_json(JsonBody(item, ""), ("text", "weight"))
        problems += [
            f"text_prompts[{index}][{name}]: {why}" for name, why in form.unreadable.items()
        ]
        pairs.append((form.text("text"), form.text("weight")))
    if problems:
        raise InvalidInput(problems)
    return pairs


def _check_count(count: int) -> None:
    if count > MAX_PROMPTS:
        raise InvalidInput([f"text_prompts: {count} are over the {MAX_PROMPTS} there may be"])


def combined(pairs: list[tuple[str, str]]) -> tuple[str, str]:
    """Return the prompt and the negative prompt of weighted texts.

    Texts of positive weight make the prompt, those of negative weight what to avoid; a weight other
    than 1 is written as `(text:weight)`, and one of 0 leaves its text out. Raises InvalidInput.
    """
    if not pairs:
        raise InvalidInput(["text_prompts: at least one is required"])
    _check_count(len(pairs))
    problems: list[str] = []
    wanted: list[str] = []
    avoided: list[str] = []
    lengths = {True: 0, False: 0}
    for index, (text, weight_text) in enumerate(pairs):
        name = f"text_prompts[{index}]"
        weight = _weight(weight_text)
        text = text.strip()
        if weight is None:
            problems.append(
                f"{name}[weight]: {weight_text[:60]} is not a number in "
                f"{-MAX_WEIGHT:g}..{MAX_WEIGHT:g}"
            )
        elif not text:
            problems.append(f"{name}[text]: is required")
        elif len(text) > MAX_PROMPT_LENGTH:  # before it is read letter by letter
            problems.append(f"{name}[text]: {len(text)} characters are over {MAX_PROMPT_LENGTH}")
        elif any("\ud800" <= letter <= "\udfff" for letter in text):
            problems.append(f"{name}[text]: holds half of a surrogate pair, which is no character")
        elif weight:
            written = text if abs(weight) == 1 else f"({_closed(text)}:{abs(weight):g})"
            (wanted if weight > 0 else avoided).append(written)
            lengths[weight > 0] += len(text)
    if not problems and not wanted:
        problems.append("text_prompts: none has a weight above 0")
    # What was sent is counted, not the brackets and commas that are put between.
    problems += [
        f"text_prompts: {length} characters of {sign} weight are over the {MAX_PROMPT_LENGTH} "
        "there may be"
        for sign, length in zip(("positive", "negative"), lengths.values(), strict=True)
        if length > MAX_PROMPT_LENGTH
    ]
    if problems:
        raise InvalidInput(problems)
    return ", ".join(wanted), ", ".join(avoided)


def _closed(text: str) -> str:
    """Return the text so that a bracket in it does not end the weight around it."""
    return text if _balanced(text) else re.sub(r"\\?([()])", r"\\\1", text)


def _balanced(text: str) -> bool:
    depth = 0
    for bracket in re.findall(r"(?<!\\)[()]", text):
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            return False
    return depth == 0


def _weight(text: str) -> float | None:
    if not text.strip():
        return 1.0
    weight = decimal_number(text)
    return None if weight is None or abs(weight) > MAX_WEIGHT else float(weight)
