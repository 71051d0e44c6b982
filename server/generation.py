"""From a checked form and a fitted picture to what the engine is asked."""

from __future__ import annotations

from pipelines.request import GenerationRequest, Pixels
from pipelines.styles import apply_style
from server.schemas import ImageToImageForm
from server.telemetry import current_request_id


def generation_request(form: ImageToImageForm, picture: Pixels) -> GenerationRequest:
    """The request with its style applied, its sampler and its seed chosen."""
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
        previews=form.previews,
        request_id=current_request_id(),
    )
