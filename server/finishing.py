"""From the engine's picture to what is handed out: the safety check, then the PNG and its text."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.request import GenerationRequest, GenerationResult
from server import parameters_text
from server.engine_host import LoadedModel
from server.images import encode_png


@dataclass(frozen=True)
class FinishedPicture:
    """A PNG file; ``filtered`` says that the safety check had it blurred."""

    png: bytes
    seed: int
    filtered: bool = False


def finish(
    result: GenerationResult, generation: GenerationRequest, model: LoadedModel
) -> FinishedPicture:
    """Blocking: call in a worker thread. Raises server.safety.PictureWithheld."""
    picture, filtered = result.image, False
    if model.safety is not None:
        picture, filtered = model.safety.review(picture, generation.request_id)
    text = parameters_text.text_chunks(generation, model.name, filtered)
    return FinishedPicture(encode_png(picture, text), result.seed, filtered)
