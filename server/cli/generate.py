"""`img2img generate`: one picture without a server, its options as the HTTP form's fields."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.cli.shared import (
    FAILURE,
    USAGE_ERROR,
    DeviceOption,
    DtypeOption,
    ModelOption,
    RevisionOption,
    read_settings,
    stop,
)
from server.images.encode import SUFFIXES, ImageFormat, format_of
from server.img2img.form import ImageToImageForm

_FIELDS: dict[str, dict[str, Any]] = ImageToImageForm.model_json_schema()["properties"]


def _field_option(name: str) -> Any:
    """Return the option of a field of the form, with the range, choices and default it has there.

    Values stay text: they are checked by the form itself, which names every bad one at once.
    """
    schema = _FIELDS[name]
    choices: list[str] = schema.get("enum", [])
    # The form's words, but for those that are of interest to HTTP clients alone.
    words = [schema["description"].removesuffix(" An addition to the hosted service's fields.")]
    if choices:
        words.append(f"One of {', '.join(choices)}.")
    if "minimum" in schema:
        words.append(f"{schema['minimum']:g} to {schema['maximum']:.10g}.")
    if (default := schema.get("default")) not in (None, ""):
        words.append(f"Default: {default}.")
    return typer.Option(
        help=" ".join(words),
        metavar="NAME" if choices else "NUMBER" if "minimum" in schema else "TEXT",
        autocompletion=lambda: choices,
        show_default=False,
    )


def generate(
    image: Annotated[
        Path,
        typer.Argument(
            help="The picture to start from.", exists=True, dir_okay=False, readable=True
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="What the picture should become.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="File to write; its suffix (.png, .jpg, .webp) names the format."
        ),
    ] = Path("out.png"),
    width: Annotated[str | None, _field_option("width")] = None,
    height: Annotated[str | None, _field_option("height")] = None,
    image_strength: Annotated[str | None, _field_option("image_strength")] = None,
    cfg_scale: Annotated[str | None, _field_option("cfg_scale")] = None,
    clip_guidance_preset: Annotated[str | None, _field_option("clip_guidance_preset")] = None,
    sampler: Annotated[str | None, _field_option("sampler")] = None,
    seed: Annotated[str | None, _field_option("seed")] = None,
    steps: Annotated[str | None, _field_option("steps")] = None,
    style_preset: Annotated[str | None, _field_option("style_preset")] = None,
    negative_prompt: Annotated[str | None, _field_option("negative_prompt")] = None,
    resize_mode: Annotated[str | None, _field_option("resize_mode")] = None,
    model: ModelOption = None,
    model_revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Make one picture without a server; options as the HTTP form's fields.

    Prints the file's name and the seed; progress goes to standard error. Exits with 2 if the input
    is wrong, with 1 if no picture could be made.
    """
    texts = {
        "prompt": prompt,
        "width": width,
        "height": height,
        "image_strength": image_strength,
        "cfg_scale": cfg_scale,
        "clip_guidance_preset": clip_guidance_preset,
        "sampler": sampler,
        "seed": seed,
        "steps": steps,
        "style_preset": style_preset,
        "negative_prompt": negative_prompt,
        "resize_mode": resize_mode,
    }
    form = _checked_output(output)
    settings = read_settings(model=model, model_revision=model_revision, device=device, dtype=dtype)
    given = {name: text for name, text in texts.items() if text is not None}
    # Imported here: these need the engine's request and so numpy, and --help should not.
    from server.cli.one_image import make_image
    from server.engine_service import StartError
    from server.errors import ConfigurationError
    from server.http.errors import ANSWERED, api_error

    failures: tuple[type[Exception], ...] = (ConfigurationError, *ANSWERED)
    try:
        with _Reporter() as reporter:
            made = asyncio.run(make_image(settings, image.read_bytes(), given, form, reporter))
    except (StartError, OSError) as error:
        raise stop(str(error), FAILURE) from None
    except failures as error:
        # The input's fault is what HTTP answers with 4xx; the words are the exception's own.
        faulty = isinstance(error, ConfigurationError) or api_error(error).status < 500
        raise stop(str(error), USAGE_ERROR if faulty else FAILURE) from None
    try:
        output.write_bytes(made.file)
    except OSError as error:
        # Minutes of work are not thrown away for a disk that filled up meanwhile.
        kept = _keep_elsewhere(made.file, output.suffix)
        raise stop(f"{output}: {error.strerror}; the picture is in {kept}", FAILURE) from None
    typer.echo(f"{output} (seed {made.seed})")


def _checked_output(output: Path) -> ImageFormat:
    """Return the format to write; exits with 2 where the file could not be written at the end."""
    folder = output.parent
    problem = None
    if not folder.is_dir():
        problem = f"the folder {folder} does not exist"
    elif output.is_dir():
        problem = f"{output} is a folder; give the name of a file"
    elif not os.access(output if output.exists() else folder, os.W_OK):
        problem = f"{output} cannot be written"
    elif (form := format_of(output)) is None:
        problem = f"{output.name} has none of the suffixes {', '.join(SUFFIXES)}"
    else:
        return form
    raise stop(f"--output: {problem}", USAGE_ERROR)


def _keep_elsewhere(file: bytes, suffix: str) -> str:
    try:
        with tempfile.NamedTemporaryFile(prefix="img2img-", suffix=suffix, delete=False) as other:
            other.write(file)
    except OSError:
        return "no other folder either"
    return other.name


class _Reporter:
    """Shows progress on standard error: a bar on a terminal, a line a stage elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> _Reporter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def stage(self, words: str) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, description=words)
        else:
            typer.echo(words, err=True)

    def step(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
