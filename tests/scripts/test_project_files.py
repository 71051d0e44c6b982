"""What GitHub and contributors' tools read: each step runs a script that is here.

The files were also validated by `check-jsonschema --builtin-schema vendor.github-workflows` (and
`vendor.dependabot`, `vendor.github-issue-forms`, `vendor.citation-file-format`), which is no
dependency of the tests.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from server import __version__

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
OTHERS = [ROOT / ".github" / "dependabot.yml", ROOT / "mkdocs.yml", ROOT / "CITATION.cff"]
PINNED = re.compile(r"[\w./-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.stem}-{name}", job)
        for path in WORKFLOWS
        for name, job in read(path)["jobs"].items()
    ]


each_job = pytest.mark.parametrize(
    "job", [job for _, job in jobs()], ids=[name for name, _ in jobs()]
)


def test_the_workflows_are_found() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "release"]


@each_job
def test_each_step_runs_a_script_that_is_here(job: dict[str, Any]) -> None:
    lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
    assert lines
    for line in lines:
        script = shlex.split(line)[0]
        assert script.startswith(("scripts/", ".ci/")), line
        assert (ROOT / script).is_file(), line
        assert os.access(ROOT / script, os.X_OK), f"{script} is not executable"


@each_job
def test_actions_are_pinned_to_a_full_version(job: dict[str, Any]) -> None:
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert [action for action in used if not PINNED.fullmatch(action)] == []


@each_job
def test_a_job_ends(job: dict[str, Any]) -> None:
    assert 0 < job["timeout-minutes"] <= 120


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_unless_a_job_asks(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}


def test_the_tests_run_on_every_python_from_the_oldest_taken() -> None:
    matrix = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]
    minors = [int(version.removeprefix("3.")) for version in matrix["python"]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    taken = SpecifierSet(project["requires-python"])
    assert f"3.{minors[0]}" in taken and f"3.{minors[0] - 1}" not in taken
    assert minors == list(range(11, 15))


@pytest.mark.parametrize("path", [*FORMS, *OTHERS], ids=lambda path: path.name)
def test_it_is_yaml(path: Path) -> None:
    assert isinstance(read(path), dict)


def test_the_citation_names_this_version() -> None:
    assert read(ROOT / "CITATION.cff")["version"] == __version__


def test_the_hooks_are_the_tools_of_the_lock() -> None:
    pins = (ROOT / "requirements-test.lock").read_text(encoding="utf-8")
    package = {"mypy": "mypy", "ruff": "ruff", "lint-imports": "import-linter"}
    for repository in read(ROOT / ".pre-commit-config.yaml")["repos"]:
        for hook in repository["hooks"]:
            tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
            assert f"\n{package[tool]}==" in pins


def pages(entries: list[Any]) -> list[str]:
    """Return the pages of a navigation, whatever sections they are in."""
    values = [value for entry in entries for value in entry.values()]
    nested = [value if isinstance(value, str) else pages(value) for value in values]
    return [page for value in nested for page in ([value] if isinstance(value, str) else value)]


def test_the_site_has_every_page() -> None:
    docs = ROOT / "docs"
    written = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    assert set(pages(read(ROOT / "mkdocs.yml")["nav"])) == written


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["scripts/build", "v0"], "is not v"),
        (["scripts/release", "v0", "--notes"], "says nothing under"),
    ],
)
def test_a_tag_of_another_version_is_no_release(command: list[str], reason: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert reason in done.stderr


def test_the_notes_of_a_release_are_its_part_of_the_changelog() -> None:
    command = ["scripts/release", "vUnreleased", "--notes"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert done.stdout.strip() and done.stdout.strip() in changelog
    assert "## [" not in done.stdout
