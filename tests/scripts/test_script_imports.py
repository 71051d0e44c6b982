"""Each command of `scripts/` that is Python only calls a module's `main`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.paths import ROOT
from tests.shipped.reach import import_one, imports

COMMANDS = [
    file
    for file in sorted((ROOT / "scripts").iterdir())
    if file.is_file() and file.read_bytes().startswith(b"#!/usr/bin/env python")
]
OURS = ("server", "pipelines", "models", "scripts", "tests")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda file: file.name)
def test_a_command_only_calls_main(command: Path) -> None:
    [(module, name)] = [(m, n) for m, n in imports(command) if m.startswith("scripts.")]
    assert name == "main"
    assert ast.parse(command.read_text()).body[-1].lineno <= 12
    try:
        import_one(module, name)
    except ImportError as error:
        # A library that only some installations have, which the command is for.
        assert (error.name or "").partition(".")[0] not in OURS, error
        pytest.skip(f"without {error.name}")


def test_a_command_finds_its_module_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fuzz"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: fuzz")
