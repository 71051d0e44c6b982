"""From a checked form and a fitted picture to what the engine is asked."""

from __future__ import annotations

from pipelines.prompt.styles import apply_style
from pipelines.prompt.weights import count_breaks
from pipelines.request import ClipGuidancePreset, GenerationRequest, Pixels
from server.engine_service import LoadedModel
from server.img2img.deny_list import DenyList
from server.img2img.form import ImageToImageForm
from server.observability.logs import current_request_id


def refusals(
    form: ImageToImageForm, model: LoadedModel, deny_list: DenyList, max_breaks: int
) -> list[str]:
    """Return a line for each field that is right in itself, but that this server does not take.

    Reading texts takes milliseconds: call it off an event loop.
    """
    lines = []
    for name, text in (("prompt", form.prompt), ("negative_prompt", form.negative_prompt)):
        if (phrase := deny_list.find(text)) is not None:
            lines.append(f"{name}: {phrase!r} is not taken by this server")
        if (breaks := count_breaks(text)) > max_breaks:
            lines.append(f"{name}: has BREAK {breaks} times, over the {max_breaks} it may have")
    preset = form.clip_guidance_preset
    if preset is not ClipGuidancePreset.NONE and model.clip is None:
        lines.append(
            f"clip_guidance_preset: {preset} needs a CLIP model, and this server has none; "
            "NONE is taken"
        )
    return lines


def generation_request(
    form: ImageToImageForm, picture: Pixels, *, previews: bool = True
) -> GenerationRequest:
    """The request with its style applied, its sampler and its seed chosen.

    Without ``previews`` none are made, whatever the form asks.
    """
    styled = apply_style(form.style_preset, form.prompt, form.negative_prompt)
    return GenerationRequest(
        image=picture,
        prompt=styled.prompt,
        negative_prompt=styled.negative_prompt,
        image_strength=form.image_strength,
        cfg_scale=form.cfg_scale,
        sampler=form.chosen_sampler,
        steps=form.steps,
        seed=form.chosen_seed(),
        clip_guidance=form.clip_guidance_preset,
        tile=styled.tile,
        previews=form.previews and previews,
        request_id=current_request_id(),
    )
