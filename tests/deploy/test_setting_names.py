"""Each setting that a way of deploying names is one of the server's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.settings import Settings, environment_name
from tests.deploy.chart import ROOT

FILES = sorted(
    file
    for file in [
        *ROOT.glob("Dockerfile*"),
        *ROOT.glob("compose*.yaml"),
        *(ROOT / "deploy").rglob("*"),
        ROOT / "docs" / "kubernetes.md",
        ROOT / "docs" / "sizing.md",
        ROOT / "docs" / "upgrading.md",
    ]
    if file.is_file()
)
NAME = re.compile(r"IMG2IMG_[A-Z0-9_]*[A-Z0-9]")


def named(file: Path) -> set[str]:
    return set(NAME.findall(file.read_text(encoding="utf-8")))


def test_the_files_are_found() -> None:
    names = {name for file in FILES for name in named(file)}
    assert {"IMG2IMG_PORT", "IMG2IMG_GRACE_PERIOD", "IMG2IMG_DATABASE_URL"} <= names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_name_is_a_setting(file: Path) -> None:
    assert named(file) - {environment_name(field) for field in Settings.model_fields} == set()
