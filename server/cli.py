"""The `img2img` command: serve, make one picture without a server, look for what is wrong."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from server import __version__
from server.command_line import FAILURE, USAGE_ERROR, read_settings, stop
from server.key_commands import credits_app, keys_app

app = typer.Typer(
    name="img2img",
    help="Image-to-image generation with Stable Diffusion 1.x, as an HTTP API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

models_app = typer.Typer(help="Fetch models ahead of time.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.add_typer(credits_app, name="credits")

ModelOption = Annotated[
    str | None,
    typer.Option(help="embedded, a folder in diffusers' layout, a .safetensors file, or a hub id."),
]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"img2img-server {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    # Read when torch is imported. Threads of an operation that wait for each other would spin, and
    # on a machine that also does something else each small operation then takes many times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8000].")] = None,
    no_auth: Annotated[
        bool | None, typer.Option("--no-auth", help="Ask for no API key, on any address.")
    ] = None,
    model: ModelOption = None,
    model_revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    root_path: Annotated[
        str | None, typer.Option(help="Path prefix that a reverse proxy serves this under.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error [info].")
    ] = None,
) -> None:
    """Serve the HTTP API. Options win over the IMG2IMG_ variables of the environment."""
    settings = read_settings(
        host=host,
        port=port,
        no_auth=no_auth,
        model=model,
        model_revision=model_revision,
        device=device,
        dtype=dtype,
        root_path=root_path,
        log_level=log_level,
    )
    from server.app import ConfigurationError
    from server.serving import leave_hung_threads
    from server.serving import serve as run_server
    from server.telemetry import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    try:
        failure = run_server(settings)
    except ConfigurationError as error:
        raise stop(str(error), USAGE_ERROR) from None
    if failure is not None:
        raise stop(failure, FAILURE)
    leave_hung_threads(FAILURE)


@app.command()
def generate(
    image: Annotated[
        Path, typer.Argument(help="The picture to start from.", exists=True, dir_okay=False)
    ],
    prompt: Annotated[str, typer.Argument(help="What the picture should become.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write.")] = Path("out.png"),
    width: Annotated[str | None, typer.Option()] = None,
    height: Annotated[str | None, typer.Option()] = None,
    image_strength: Annotated[str | None, typer.Option(help="0..1 [0.35]")] = None,
    cfg_scale: Annotated[str | None, typer.Option(help="0..35 [7]")] = None,
    clip_guidance_preset: Annotated[str | None, typer.Option()] = None,
    sampler: Annotated[str | None, typer.Option()] = None,
    seed: Annotated[str | None, typer.Option(help="0 or left out: a random one.")] = None,
    steps: Annotated[str | None, typer.Option(help="10..50 [30]")] = None,
    style_preset: Annotated[str | None, typer.Option()] = None,
    negative_prompt: Annotated[str | None, typer.Option()] = None,
    resize_mode: Annotated[str | None, typer.Option(help="crop, stretch or pad [crop]")] = None,
    model: ModelOption = None,
    model_revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Make one picture without a server; options as the HTTP form's fields."""
    from server.engine_host import StartError
    from server.one_picture import InvalidInput, make_picture

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
    settings = read_settings(model=model, model_revision=model_revision, device=device, dtype=dtype)
    given = {name: text for name, text in texts.items() if text is not None}
    try:
        png, used_seed = asyncio.run(make_picture(settings, image.read_bytes(), given))
    except InvalidInput as error:
        raise stop(str(error), USAGE_ERROR) from None
    except StartError as error:
        raise stop(str(error), FAILURE) from None
    output.write_bytes(png)
    typer.echo(f"{output} (seed {used_seed})")


@app.command()
def doctor(
    model: ModelOption = None,
    model_revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Say what would run where, and what is wrong. Exits with 1 if something is."""
    from server.diagnosis import diagnose

    settings = read_settings(model=model, model_revision=model_revision, device=device, dtype=dtype)
    diagnosis = diagnose(settings)
    for name, value in diagnosis.facts.items():
        typer.echo(f"{name:<10} {value}")
    for problem in diagnosis.problems:
        typer.echo(f"problem    {problem}")
    if diagnosis.problems:
        raise typer.Exit(FAILURE)
    typer.echo("nothing is wrong")


@models_app.command()
def pull(
    model: Annotated[
        str | None,
        typer.Argument(help="Hub id; left out: that of IMG2IMG_MODEL, else Stable Diffusion 1.5."),
    ] = None,
    revision: RevisionOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="The dtype it will run in: float16 halves the download [IMG2IMG_DTYPE]."),
    ] = None,
) -> None:
    """Fetch a hub model's safetensors into the local cache; serving it then needs no network."""
    from server.model_download import pull_model

    settings = read_settings(model=model, model_revision=revision, dtype=dtype)
    try:
        typer.echo(pull_model(settings, named=model is not None))
    except ValueError as error:
        raise stop(str(error), USAGE_ERROR) from None
    except RuntimeError as error:
        raise stop(str(error), FAILURE) from None


def main() -> None:
    """The console command."""
    app()


if __name__ == "__main__":
    main()
