"""A command that a Python without the packages runs goes on in the checkout's environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.paths import ROOT

COMMAND = """
import sys
sys.path.insert(0, "")
import scripts
print("here")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One whose environment's Python says what it was given."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "__init__.py", tmp_path / "scripts")
    (tmp_path / "command").write_text(COMMAND)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "there: $*"\n')
    python.chmod(0o755)
    return tmp_path


def run(checkout: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments, "command", "--count", "2 3"]
    return subprocess.check_output(command, cwd=checkout, text=True).strip()


def test_without_the_packages_it_goes_on_there(checkout: Path) -> None:
    assert run(checkout, "-S") == "there: -S command --count 2 3"


def test_with_the_packages_it_stays(checkout: Path) -> None:
    assert run(checkout) == "here"


def test_without_an_environment_it_stays(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    assert run(checkout, "-S") == "here"
