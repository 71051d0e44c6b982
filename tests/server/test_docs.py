"""The pages tell of every setting and every command, and link to what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from server.cli.main import app
from server.settings import KEY_OF_CLIENTS, Settings, environment_name

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.fixture(scope="module")
def settings_page() -> str:
    return (DOCS / "settings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_setting_is_documented(settings_page: str, field: str) -> None:
    assert f"`{environment_name(field)}`" in settings_page


def test_the_settings_page_is_what_scripts_settings_table_writes(settings_page: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "settings_table"), "--print"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert settings_page == done.stdout, "run .venv/bin/python scripts/settings_table"


def commands() -> list[str]:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return sorted(group.commands)


@pytest.mark.parametrize("command", commands())
def test_command_is_documented(command: str) -> None:
    assert f"img2img {command}" in (DOCS / "usage.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_setting_is_documented_that_does_not_exist(page: Path) -> None:
    known = {environment_name(field) for field in Settings.model_fields} | {KEY_OF_CLIENTS}
    text = page.read_text(encoding="utf-8").replace("=", " ")
    words = {word.strip("`|,.;:()*'\"") for word in text.split()}
    mentioned = {word for word in words if word.startswith("IMG2IMG_") and word != "IMG2IMG_"}
    assert mentioned <= known


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_is_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110
