"""One picture without HTTP, through the same checks and the same engine as the server's."""

from __future__ import annotations

from collections.abc import Mapping

from server.deny_list import DenyList, DenyListError
from server.engine_host import load_model
from server.finishing import finish
from server.generation import generation_request, refusals
from server.images import PictureError, prepare_picture
from server.safety import PictureWithheld
from server.schemas import parse_form
from server.settings import Settings


class InvalidInput(ValueError):
    """The picture or a field is wrong; the message names each."""


async def make_picture(
    settings: Settings, upload: bytes, texts: Mapping[str, str]
) -> tuple[bytes, int]:
    """A PNG file and the seed that was used.

    Raises InvalidInput, server.engine_host.StartError, or what the engine raises.
    """
    form, problems = parse_form(texts)
    if form is None:
        raise InvalidInput("\n".join(problems))
    try:
        picture = prepare_picture(
            upload, form.width, form.height, form.resize_mode, settings.auto_picture_sizes
        )
    except PictureError as error:
        raise InvalidInput(str(error)) from None
    try:
        deny_list = DenyList.read(settings.prompt_deny_list)
    except DenyListError as error:
        raise InvalidInput(str(error)) from None
    model = load_model(settings, warm_up=False)
    if problems := refusals(form, model, deny_list, settings.max_breaks):
        raise InvalidInput("\n".join(problems))
    generation = generation_request(form, picture)
    model.engine.start()
    try:
        result = await model.engine.submit(generation).result()
    finally:
        model.engine.drain(0.0)
    try:
        finished = finish(result, generation, model)
    except PictureWithheld as error:
        raise InvalidInput(str(error)) from None
    return finished.png, finished.seed
