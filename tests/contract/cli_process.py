"""Commands of the command line in the shipped environment, several of them in one process.

Loading torch and the libraries of the models takes longer than most commands do.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.project.shipped_environment import shipped_environment
from tests.server.server_process import ROOT

_RUN_EACH = """
import json, sys
from typer.testing import CliRunner
from server.cli.main import app

results = []
for arguments in json.load(sys.stdin):
    done = CliRunner().invoke(app, arguments, prog_name="img2img")
    results.append([done.exit_code, done.stdout, done.stderr])
json.dump(results, sys.__stdout__)
"""


@dataclass(frozen=True)
class Done:
    """The end of a command."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> Done:
    """Run one command in a process of its own, as a user does."""
    command = [str(shipped_environment()), "-m", "server.cli", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=_kept() | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def run_each(*commands: Sequence[str], environment: Mapping[str, str] | None = None) -> list[Done]:
    """Run commands one after the other in one process."""
    done = subprocess.run(
        [str(shipped_environment()), "-c", _RUN_EACH],
        cwd=ROOT,
        env=_kept() | dict(environment or {}),
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Done(*result) for result in json.loads(done.stdout)]


def _kept() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("IMG2IMG_", "HF_"))}
