"""Shared by all commands: reading the settings, and ending when something is wrong."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn, TextIO

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from server.settings import Settings, environment_name

USAGE_ERROR = 2
FAILURE = 1
STOPPED = 130
"""As shells tell of a process that Ctrl+C ended."""

ModelOption = Annotated[
    str | None,
    typer.Option(help="embedded, a folder in diffusers' layout, a .safetensors file, or a hub id."),
]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.")]


def stop(message: str, status: int) -> typer.Exit:
    """Print the message and return the exception that ends the command."""
    typer.echo(message, err=True)
    return typer.Exit(status)


def print_line(line: str) -> None:
    """Print a line of results; where nobody reads them any more (`| head`), that is no failure."""
    try:
        # Not by typer.echo, which looks behind what rich has put in the place of sys.stdout.
        try:
            print(line, flush=True)
        except UnicodeEncodeError:  # The name of a file can be any bytes.
            print(ascii(line)[1:-1], flush=True)
    except OSError:
        silence(sys.stdout)


def silence(stream: TextIO) -> None:
    """Have nothing more written to a stream that is broken, at the interpreter's end either."""
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  no path of anyone's
        os.dup2(nowhere.fileno(), stream.fileno())


def leave(status: int) -> NoReturn:
    """End the process now, whatever its threads do: the interpreter would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def read_settings(**overrides: Any) -> Settings:
    """The environment's settings with the command line's on top; exits with 2 on a bad one."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except SettingsError as error:
        raise stop(str(error), USAGE_ERROR) from None
    except ValidationError as error:
        lines = []
        for item in error.errors(include_input=False):
            names = [environment_name(str(name)) for name in item["loc"][:1]]
            lines.append(": ".join([*names, item["msg"].removeprefix("Value error, ")]))
        raise stop("\n".join(lines), USAGE_ERROR) from None
