"""Every path that the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.server.server_process import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PATH = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|lock)|(?:[\w.-]+/)+)`")


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=str)
def test_paths_exist(page: Path) -> None:
    named = set(PATH.findall(page.read_text(encoding="utf-8")))
    folders = [
        "server",
        "pipelines",
        "models",
        "scripts",
        "tests",
        "docs",
        "deploy",
        "clients",
        ".ci",
        ".github",
    ]
    files = [
        file.relative_to(ROOT).parts for folder in folders for file in (ROOT / folder).rglob("*")
    ]
    ends = {"/".join(parts[i:]) for parts in files for i in range(len(parts))}
    ends |= {file.name for file in ROOT.iterdir()}
    assert {path for path in named if path.rstrip("/") not in ends} == set()
