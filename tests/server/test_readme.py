"""The README tells of every setting and every command."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from server.cli.main import app
from server.settings import Settings, environment_name

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text(encoding="utf-8")


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_setting_is_documented(readme: str, field: str) -> None:
    assert f"`{environment_name(field)}`" in readme


def commands() -> list[str]:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return sorted(group.commands)


@pytest.mark.parametrize("command", commands())
def test_command_is_documented(readme: str, command: str) -> None:
    assert f"img2img {command}" in readme


def test_no_setting_is_documented_that_does_not_exist(readme: str) -> None:
    known = {environment_name(field) for field in Settings.model_fields}
    words = {word.strip("`|,.;:()=*'\"") for word in readme.replace("=", " ").split()}
    mentioned = {word for word in words if word.startswith("IMG2IMG_") and word != "IMG2IMG_"}
    assert mentioned <= known
