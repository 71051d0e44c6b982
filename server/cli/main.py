"""The `img2img` command: serve, make one picture without a server, look for what is wrong."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from server import __version__
from server.cli.accounts import credits_app, keys_app
from server.cli.generate import EXIT_CODES, generate
from server.cli.shared import (
    FAILURE,
    STOPPED,
    USAGE_ERROR,
    DeviceOption,
    DtypeOption,
    ModelOption,
    RevisionOption,
    read_settings,
    stop,
)

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="img2img",
    help="Image-to-image generation with Stable Diffusion 1.x, as an HTTP API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

models_app = typer.Typer(help="Fetch models ahead of time.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.add_typer(credits_app, name="credits")


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


_SERVE_EXIT_CODES = (
    "Exits with 0 when it was told to stop, with 1 if the port is taken or the model cannot be "
    "loaded, with 2 if a setting is wrong."
)


@app.command(epilog=_SERVE_EXIT_CODES)
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
    devices: Annotated[
        str | None,
        typer.Option(help="Engines on this machine: all (one a CUDA device), or their number."),
    ] = None,
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
        devices=devices,
        root_path=root_path,
        log_level=log_level,
    )
    from server.errors import ConfigurationError
    from server.observability.logs import configure_logging
    from server.serve import leave_hung_threads
    from server.serve import serve as run_server

    configure_logging(settings.log_level, settings.log_format)
    try:
        # Logs go to standard error, so this can be read apart from them. Who collects lines of
        # JSON reads both, and can read no other.
        announce = typer.echo if settings.log_format == "text" else logger.info
        failure = run_server(settings, announce=announce)
    except ConfigurationError as error:
        raise stop(str(error), USAGE_ERROR) from None
    ended = None if failure is None else stop(failure, FAILURE)
    leave_hung_threads(FAILURE)
    if ended is not None:
        raise ended


app.command(epilog=EXIT_CODES)(generate)


@app.command()
def doctor(
    model: ModelOption = None,
    model_revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Say what is wrong and what to do, then what would run where. Exits with 1 if something is
    wrong."""
    from rich.console import Console
    from rich.text import Text

    from server.cli.doctor import diagnose

    settings = read_settings(model=model, model_revision=model_revision, device=device, dtype=dtype)
    diagnosis = diagnose(settings)
    # In colour on a terminal, unless NO_COLOR is set.
    console = Console(soft_wrap=True, highlight=False)
    for problem in diagnosis.problems:
        console.print(Text.assemble(("problem    ", "bold red"), problem))
    for name, value in diagnosis.facts.items():
        console.print(Text.assemble((f"{name:<10} ", "dim"), value))
    if diagnosis.problems:
        raise typer.Exit(FAILURE)
    console.print("nothing is wrong", style="bold green")


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
    from server.cli.pull import pull_model

    settings = read_settings(model=model, model_revision=revision, dtype=dtype)
    try:
        typer.echo(pull_model(settings, named=model is not None))
    except ValueError as error:
        raise stop(str(error), USAGE_ERROR) from None
    except RuntimeError as error:
        raise stop(str(error), FAILURE) from None


def main() -> None:
    """The console command."""
    try:
        app()
    except KeyboardInterrupt:  # A second one, say, while the first one's is being ended.
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
