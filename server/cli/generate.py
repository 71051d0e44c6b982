"""`img2img generate`: pictures from pictures, by a server or without one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.grid import labels_of, write_grid
from server.cli.jobs import (
    Job,
    JobsError,
    cannot_write,
    files_read,
    jobs_of,
    rows_of_inputs,
    rows_of_list,
)
from server.cli.maker import NotMade
from server.cli.run_jobs import run_jobs
from server.cli.shared import (
    FAILURE,
    STOPPED,
    USAGE_ERROR,
    DeviceOption,
    DtypeOption,
    ModelOption,
    RevisionOption,
    leave,
    print_line,
    read_settings,
    stop,
)
from server.img2img.form import ImageToImageForm
from server.settings import Settings

_FIELDS: dict[str, dict[str, Any]] = ImageToImageForm.model_json_schema()["properties"]


class Suffix(StrEnum):
    """The kind of file, where outputs are named after their inputs."""

    PNG = "png"
    JPG = "jpg"
    WEBP = "webp"


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
        rich_help_panel="The picture",
    )


def _not_blank(text: str) -> str:
    # As a path, blank text is the current folder; and a separator at the end would be lost.
    if not text.strip():
        raise typer.BadParameter("it is blank; name a file or a folder")
    return text


EXIT_CODES = (
    "Exits with 0 if all pictures are there, with 1 if one could not be made, with 2 if what was "
    "given is wrong (an option, a file, a key), with 130 when it was stopped."
)


def generate(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Pictures to start from: files, or patterns such as 'in/*.jpg'.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="What the pictures should become.", show_default=False
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write; its suffix (.png, .jpg, .webp) names the format. For several "
            "pictures, or with / at its end, a folder, made if need be. Default: out.png, for "
            "several out.",
            parser=_not_blank,
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask this running server, with the key in IMG2IMG_API_KEY, instead of loading a "
            "model here. Default: none.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="A picture that is white where the input is made anew and black where it stays.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(
            help="A list of pictures to make instead of INPUT: CSV with a head, or JSONL. A row "
            "has input, prompt, and any of output, mask and the fields below; paths are relative "
            "to the list's folder, output to that of --output.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        Suffix, typer.Option(help="The kind of file where -o names no file.")
    ] = Suffix.PNG,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Of several pictures, make those too whose file is there already. Default: they "
            "are skipped, so that a run that was cut off goes on where it was.",
        ),
    ] = False,
    grid: Annotated[
        Path | None,
        typer.Option(
            help="Write one PNG of all pictures too, with what differs below each.",
            metavar="FILE.png",
            show_default=False,
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            help="How many pictures to ask for at the same time: they share steps.", min=1, max=64
        ),
    ] = 1,
    previews: Annotated[
        bool,
        typer.Option(
            "--previews/--no-previews",
            help="Draw the picture that forms, where the terminal can: kitty, iTerm2, sixel, or "
            "any of full colour.",
        ),
    ] = True,
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
    """Make pictures, without a server or by one (--url); options as the HTTP form's fields.

    Prints each file's name and its seed; progress goes to standard error.
    """
    fields = {
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
    texts = {name: text for name, text in fields.items() if text is not None}
    own = {"model": model, "model_revision": model_revision, "device": device, "dtype": dtype}
    where: str | Settings
    if url is None:
        where = read_settings(**own)
    else:
        where = url
        if given := [f"--{name.replace('_', '-')}" for name, value in own.items() if value]:
            raise stop(f"{', '.join(given)}: the server of --url has its own", USAGE_ERROR)
    todo: list[Job] = []
    threads = set(threading.enumerate())
    try:
        wanted = _wanted(inputs or [], jobs, texts, mask, output, f".{format}")
        if grid is not None and (problem := _grid_problem(grid, wanted)):
            raise JobsError([f"--grid: {problem}"])
        todo = wanted
        if len(wanted) > 1 and not overwrite:
            todo = [job for job in wanted if not job.output.exists()]
        if skipped := len(wanted) - len(todo):
            remark = f"{skipped} of {len(wanted)} are there already; --overwrite makes them anew"
            typer.echo(remark, err=True)
        statuses = run_jobs(todo, where, parallel=parallel, previews=previews)
    except JobsError as error:
        raise stop(str(error), USAGE_ERROR) from None
    except NotMade as error:
        raise stop(str(error), error.status) from None
    except KeyboardInterrupt:
        ended = stop(_stopped(todo, overwrite), STOPPED)
        if set(threading.enumerate()) - threads:  # A model that loads, or what a device has begun.
            leave(STOPPED)
        raise ended from None
    if grid is not None:
        statuses.append(_write_grid(grid, wanted))
    if any(statuses):
        # A fault of the server or of this machine weighs more than one of the input.
        raise typer.Exit(min(status for status in statuses if status))


def _stopped(todo: Sequence[Job], overwrite: bool) -> str:
    if len(todo) < 2:
        return "stopped; nothing was written"
    again = "" if overwrite else ", and the same command goes on from there"
    return f"stopped; what was written stays{again}"


def _wanted(
    inputs: list[str],
    list_file: Path | None,
    texts: dict[str, str],
    mask: Path | None,
    output: str | None,
    suffix: str,
) -> list[Job]:
    """Return what is to be made. Raises JobsError."""
    if list_file is not None:
        if inputs:
            raise JobsError(["give INPUT... or --jobs, not both"])
        rows, wrong = rows_of_list(list_file, texts, mask)
    elif not inputs:
        raise JobsError(["give INPUT... and PROMPT, or --jobs: img2img generate in.png 'a cat'"])
    else:
        rows, wrong = rows_of_inputs(inputs, texts, mask)
    return jobs_of(rows, wrong, output, suffix)


def _grid_problem(grid: Path, wanted: Sequence[Job]) -> str | None:
    if grid.suffix.lower() != ".png":
        return f"{grid.name} has not the suffix .png"
    if problem := cannot_write(grid, files_read(wanted)):
        return problem
    if grid.resolve() in (job.output.resolve() for job in wanted):
        return f"{grid} is a picture of its own; name another"
    return None


def _write_grid(grid: Path, jobs: Sequence[Job]) -> int:
    labelled = zip(labels_of(jobs), (job.output for job in jobs), strict=True)
    there = [(label, path) for label, path in labelled if path.exists()]
    if not there:
        return FAILURE
    try:
        write_grid(there, grid)
    except (OSError, ValueError) as error:
        typer.echo(f"{grid}: {error}", err=True)
        return FAILURE
    print_line(f"{grid} ({len(there)} of {len(jobs)} pictures)")
    return 0
