"""From the engine's picture to what is handed out: the safety check, then the file and its text."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.request import GenerationRequest, GenerationResult
from server.engine_service import LoadedModel
from server.images import parameters_text
from server.images.encode import ImageFormat, encode_image


@dataclass(frozen=True)
class FinishedImage:
    """A picture as a file; ``filtered`` says that the safety check had it blurred."""

    file: bytes
    seed: int
    filtered: bool = False


def finish(
    result: GenerationResult,
    generation: GenerationRequest,
    model: LoadedModel,
    form: ImageFormat = ImageFormat.PNG,
) -> FinishedImage:
    """Check the picture and write it in ``form``. Blocking: call in a worker thread.

    Raises server.img2img.moderation.ImageWithheld.
    """
    picture, filtered = result.image, False
    if model.safety is not None:
        picture, filtered = model.safety.review(picture, generation.request_id)
    text = parameters_text.text_chunks(generation, model.name, filtered)
    return FinishedImage(encode_image(picture, text, form), result.seed, filtered)
