"""The generation settings as the `parameters` text of a PNG, in the form A1111's tools read."""

from __future__ import annotations

import json

from pipelines.request import ClipGuidancePreset, GenerationRequest, SigmaSchedule
from pipelines.samplers.names import A1111_AUTOMATIC, A1111_LABELS, SCHEDULE_LABELS
from server import __version__

KEY = "parameters"

SOFTWARE_KEY = "Software"
SOURCE_KEY = "DigitalSourceType"
TRAINED_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE_MEDIA = (
    "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
)
"""IPTC's words for a picture that a model made, and for one that it made of another picture."""


def text_chunks(
    request: GenerationRequest,
    model_name: str,
    filtered: bool = False,
    size: tuple[int, int] | None = None,
) -> dict[str, str]:
    """Return every text chunk of an image: that it was generated, by what, with what settings.

    ``size`` is the one that was asked for where the model makes another.
    """
    software = f"img2img-server {__version__}"
    whole = request.strength <= 0 and request.mask is None
    source = TRAINED_MEDIA if whole else COMPOSITE_MEDIA
    text = parameters_text(request, model_name, filtered, size)
    return {KEY: text, SOFTWARE_KEY: software, SOURCE_KEY: source}


def parameters_text(
    request: GenerationRequest,
    model_name: str,
    filtered: bool = False,
    size: tuple[int, int] | None = None,
) -> str:
    """The prompt, the negative prompt if there is one, and a line of settings.

    They are those that were asked for, not what was made of them: sent again to the same API, they
    give the same picture.
    """
    width, height = size or (request.width, request.height)
    settings = {
        "Steps": str(request.steps),
        "Sampler": A1111_LABELS[request.sampler],
        "CFG scale": _number(request.cfg_scale),
        "Seed": str(request.seed),
        "Size": f"{width}x{height}",
        "Model": model_name,
    }
    if not request.from_noise:
        settings["Denoising strength"] = _number(1 - request.image_strength)
    if request.variation_seed is not None and request.variation_strength > 0:
        settings["Variation seed"] = str(request.variation_seed)
        settings["Variation seed strength"] = _number(request.variation_strength)
    if (label := schedule_label(request)) != SCHEDULE_LABELS[SigmaSchedule.AUTOMATIC]:
        settings["Schedule type"] = label
    if request.clip_guidance is not ClipGuidancePreset.NONE:
        settings["CLIP guidance"] = request.clip_guidance.value
    if request.tile:
        settings["Tiling"] = "True"
    if filtered:
        settings["Filtered"] = "True"
    settings["Version"] = f"img2img-server {__version__}"
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def schedule_label(request: GenerationRequest) -> str:
    """Return A1111's name of the request's sigmas. Where none is said it takes its own choice,
    which for some samplers is not the plain one."""
    if request.schedule is SigmaSchedule.AUTOMATIC and request.sampler in A1111_AUTOMATIC:
        return "Uniform"
    return SCHEDULE_LABELS[request.schedule]


def _number(value: float) -> str:
    # Twelve digits: of what is sent, no one sends more, and 1 - 0.65 has its errors behind them.
    return f"{value:.12g}"


def _quoted(value: str) -> str:
    # A1111 quotes values that its own comma- and colon-separated line could not hold.
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
