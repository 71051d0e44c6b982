"""What scripts import is there: no type checker reads them, and most are not run by a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.server_process import ROOT
from tests.shipped.reach import import_one, imports

OURS = {"server", "pipelines", "models", "tests"} | {
    path.stem for path in (ROOT / "scripts").iterdir() if path.is_dir() or path.suffix == ".py"
}


def is_python(file: Path) -> bool:
    return file.is_file() and (
        file.suffix == ".py" or file.read_bytes().startswith(b"#!/usr/bin/env python")
    )


SCRIPTS = [file for file in sorted((ROOT / "scripts").rglob("*")) if is_python(file)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_imported_from_this_project_is_there(script: Path) -> None:
    for module, name in imports(script):
        if module.partition(".")[0] not in OURS:
            continue
        try:
            import_one(module, name)
        except ImportError as error:
            # A library that only some installations have, which the script is for.
            assert (error.name or "").partition(".")[0] not in OURS, error
            pytest.skip(f"without {error.name}")
